/* One step: y gets the state and, after it, the cell. `scratch` holds both products. */
static inline void NAME_lstm_cell(const NAME_matrix *input, const NAME_matrix *state, const float *x, const float *before,
                                  const float *cell, float *y, float *scratch)
{
    const int n = state->columns;
    NAME_linear(input, x, scratch);
    NAME_linear(state, before, scratch + 4 * n);
    NAME_lstm_gates(n, scratch, scratch + 4 * n, cell, y, y + n);
}
