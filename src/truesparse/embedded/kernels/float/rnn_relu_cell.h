/* One step. `scratch` holds both products. */
static inline void NAME_rnn_relu_cell(const NAME_matrix *input, const NAME_matrix *state, const float *x, const float *before, float *y,
                                      float *scratch)
{
    const int n = state->columns;
    NAME_linear(input, x, scratch);
    NAME_linear(state, before, scratch + n);
    for (int i = 0; i < n; ++i)
        y[i] = NAME_clamped(scratch[i] + scratch[n + i], 0.0f, INFINITY);
}
