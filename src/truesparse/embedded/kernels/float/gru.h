/* Gates: reset, update, new. `scratch` holds both products and the state. */
static inline void NAME_gru(const NAME_recurrent *r, const float *x, float *y, float *scratch)
{
    const int n = r->state->columns;
    float *by_input = scratch, *by_state = scratch + 3 * n, *state = scratch + 6 * n;
    for (int i = 0; i < n; ++i)
        state[i] = 0.0f;
    for (int step = 0; step < r->steps; ++step, x += r->input->columns) {
        NAME_linear(r->input, x, by_input);
        NAME_linear(r->state, state, by_state);
        for (int i = 0; i < n; ++i) {
            const float reset = NAME_logistic(by_input[i] + by_state[i]);
            const float update = NAME_logistic(by_input[n + i] + by_state[n + i]);
            const float fresh = tanhf(by_input[2 * n + i] + reset * by_state[2 * n + i]);
            state[i] = fresh + update * (state[i] - fresh);
            y[i] = state[i];
        }
        y += r->every ? n : 0;
    }
}
