/* `scratch` holds both products and the state. */
static inline void NAME_rnn_tanh(const NAME_recurrent *r, const float *x, float *y, float *scratch)
{
    const int n = r->state->columns;
    float *by_input = scratch, *by_state = scratch + n, *state = scratch + 2 * n;
    for (int i = 0; i < n; ++i)
        state[i] = 0.0f;
    for (int step = 0; step < r->steps; ++step, x += r->input->columns) {
        NAME_linear(r->input, x, by_input);
        NAME_linear(r->state, state, by_state);
        for (int i = 0; i < n; ++i)
            y[i] = state[i] = tanhf(by_input[i] + by_state[i]);
        y += r->every ? n : 0;
    }
}
