/* y = W x + bias */
static inline void NAME_linear(const NAME_matrix *m, const float *x, float *y)
{
    const float *value = m->values;
    const uint8_t *gap = m->gaps;
    for (int row = 0; row < m->rows; ++row) {
        const float *at = x;
        float sum = m->bias[row];
        if (gap != NULL)
            for (int left = m->counts[row]; left > 0; --left) {
                at += *gap++;
                sum += *value++ * *at;
            }
        else
            for (int left = m->columns; left > 0; --left)
                sum += *value++ * *at++;
        y[row] = NAME_clamped(sum, m->low, m->high);
    }
}
