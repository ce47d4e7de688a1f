static inline void NAME_zeros(float *y, int n)
{
    for (int i = 0; i < n; ++i)
        y[i] = 0.0f;
}
