/* `scratch` holds both products, the state and the cells. */
static inline void NAME_lstm(const NAME_recurrent *r, const float *x, float *y, float *scratch)
{
    const int n = r->state->columns;
    float *by_input = scratch, *by_state = scratch + 4 * n, *state = scratch + 8 * n, *cell = scratch + 9 * n;
    for (int i = 0; i < n; ++i)
        state[i] = cell[i] = 0.0f;
    for (int step = 0; step < r->steps; ++step, x += r->input->columns) {
        NAME_linear(r->input, x, by_input);
        NAME_linear(r->state, state, by_state);
        NAME_lstm_gates(n, by_input, by_state, cell, state, cell);
        for (int i = 0; i < n; ++i)
            y[i] = state[i];
        y += r->every ? n : 0;
    }
}
