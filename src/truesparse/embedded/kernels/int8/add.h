/* Each input has its zero and its factor, mantissa / 2^shift. */
static inline void NAME_add(const int8_t *x, const int8_t *other, int8_t *y, int n, int zero, int32_t mantissa, int other_zero,
                            int32_t other_mantissa, int shift, int out_zero)
{
    for (int i = 0; i < n; ++i)
        y[i] = NAME_narrowed((x[i] - zero) * mantissa + (other[i] - other_zero) * other_mantissa, 1, shift, out_zero, -128, 127);
}
