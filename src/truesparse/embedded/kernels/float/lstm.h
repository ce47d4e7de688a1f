/* Gates: input, forget, cell, output. `scratch` holds both products, the state and the cells. */
static inline void NAME_lstm(const NAME_recurrent *r, const float *x, float *y, float *scratch)
{
    const int n = r->state->columns;
    float *by_input = scratch, *by_state = scratch + 4 * n, *state = scratch + 8 * n, *cell = scratch + 9 * n;
    for (int i = 0; i < n; ++i)
        state[i] = cell[i] = 0.0f;
    for (int step = 0; step < r->steps; ++step, x += r->input->columns) {
        NAME_linear(r->input, x, by_input);
        NAME_linear(r->state, state, by_state);
        for (int i = 0; i < n; ++i) {
            const float take = NAME_logistic(by_input[i] + by_state[i]);
            const float forget = NAME_logistic(by_input[n + i] + by_state[n + i]);
            const float fresh = tanhf(by_input[2 * n + i] + by_state[2 * n + i]);
            cell[i] = forget * cell[i] + take * fresh;
            state[i] = NAME_logistic(by_input[3 * n + i] + by_state[3 * n + i]) * tanhf(cell[i]);
            y[i] = state[i];
        }
        y += r->every ? n : 0;
    }
}
