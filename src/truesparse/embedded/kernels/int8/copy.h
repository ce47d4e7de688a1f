/* To another scale. */
static inline void NAME_copy(const int8_t *x, int8_t *y, int n, int zero, int32_t mantissa, int shift, int out_zero)
{
    for (int i = 0; i < n; ++i)
        y[i] = NAME_narrowed(x[i] - zero, mantissa, shift, out_zero, -128, 127);
}
