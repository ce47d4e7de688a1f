static inline void NAME_multiply(const int8_t *x, const int8_t *other, int8_t *y, int n, int zero, int other_zero, int32_t mantissa,
                                 int shift, int out_zero)
{
    for (int i = 0; i < n; ++i)
        y[i] = NAME_narrowed((x[i] - zero) * (other[i] - other_zero), mantissa, shift, out_zero, -128, 127);
}
