static inline void NAME_hardswish(const float *x, float *y, int n)
{
    for (int i = 0; i < n; ++i)
        y[i] = x[i] * NAME_clamped(x[i] + 3.0f, 0.0f, 6.0f) / 6.0f;
}
