static inline void NAME_clamp(const float *x, float *y, int n, float low, float high)
{
    for (int i = 0; i < n; ++i)
        y[i] = NAME_clamped(x[i], low, high);
}
