static inline void NAME_tanh(const float *x, float *y, int n)
{
    for (int i = 0; i < n; ++i)
        y[i] = tanhf(x[i]);
}
