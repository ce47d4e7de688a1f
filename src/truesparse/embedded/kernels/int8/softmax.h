/* powers[d] is 65535 * exp(-scale * d); y is in parts of 256, its zero -128. */
static inline void NAME_softmax(const int8_t *x, int8_t *y, int rows, int columns, const uint16_t *powers)
{
    for (int row = 0; row < rows; ++row, x += columns, y += columns) {
        int most = x[0];
        uint32_t sum = 0;
        for (int i = 1; i < columns; ++i)
            most = x[i] > most ? x[i] : most;
        for (int i = 0; i < columns; ++i)
            sum += powers[most - x[i]];
        for (int i = 0; i < columns; ++i) {
            const uint32_t share = ((uint32_t)powers[most - x[i]] * 256u + sum / 2u) / sum;
            y[i] = (int8_t)((int)(share > 255u ? 255u : share) - 128);
        }
    }
}
