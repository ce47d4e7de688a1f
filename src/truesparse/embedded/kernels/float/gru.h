/* `scratch` holds both products and the state. */
static inline void NAME_gru(const NAME_recurrent *r, const float *x, float *y, float *scratch)
{
    const int n = r->state->columns;
    float *by_input = scratch, *by_state = scratch + 3 * n, *state = scratch + 6 * n;
    for (int i = 0; i < n; ++i)
        state[i] = 0.0f;
    for (int step = 0; step < r->steps; ++step, x += r->input->columns) {
        NAME_linear(r->input, x, by_input);
        NAME_linear(r->state, state, by_state);
        NAME_gru_gates(n, by_input, by_state, state, state);
        for (int i = 0; i < n; ++i)
            y[i] = state[i];
        y += r->every ? n : 0;
    }
}
