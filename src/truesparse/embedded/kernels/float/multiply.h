static inline void NAME_multiply(const float *x, const float *other, float *y, int n)
{
    for (int i = 0; i < n; ++i)
        y[i] = x[i] * other[i];
}
