/* y = W x + bias, in fixed point */
static inline void NAME_product(const NAME_matrix *m, const int8_t *x, int32_t *y)
{
    const int8_t *value = m->values;
    const uint8_t *gap = m->gaps;
    for (int row = 0; row < m->rows; ++row) {
        const int8_t *at = x;
        int32_t sum = m->bias[row];
        if (gap != NULL)
            for (int left = m->counts[row]; left > 0; --left) {
                at += *gap++;
                sum += *value++ * *at;
            }
        else
            for (int left = m->columns; left > 0; --left)
                sum += *value++ * *at++;
        y[row] = NAME_fixed(sum, m->mantissas[row], m->shift);
    }
}
