/* y = W x + bias */
static inline void NAME_linear(const NAME_matrix *m, const int8_t *x, int8_t *y)
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
        y[row] = NAME_narrowed(sum, m->mantissas[row], m->shift, m->zero, m->low, m->high);
    }
}
