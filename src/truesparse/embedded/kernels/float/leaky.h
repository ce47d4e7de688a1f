static inline void NAME_leaky(const float *x, float *y, int n, float slope)
{
    for (int i = 0; i < n; ++i)
        y[i] = x[i] < 0.0f ? slope * x[i] : x[i];
}
