/* One step. `scratch` holds both products. */
static inline void NAME_gru_cell(const NAME_matrix *input, const NAME_matrix *state, const float *x, const float *before, float *y,
                                 float *scratch)
{
    const int n = state->columns;
    NAME_linear(input, x, scratch);
    NAME_linear(state, before, scratch + 3 * n);
    NAME_gru_gates(n, scratch, scratch + 3 * n, before, y);
}
