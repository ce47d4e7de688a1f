static inline void NAME_sigmoid(const float *x, float *y, int n)
{
    for (int i = 0; i < n; ++i)
        y[i] = NAME_logistic(x[i]);
}
