static inline void NAME_add(const float *x, const float *other, float *y, int n)
{
    for (int i = 0; i < n; ++i)
        y[i] = x[i] + other[i];
}
