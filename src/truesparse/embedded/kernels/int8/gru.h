/* Gates: reset, update, new. `scratch` holds both products, the state, and the int8 of it that is multiplied. */
static inline void NAME_gru(const NAME_recurrent *r, const int8_t *x, int8_t *y, int32_t *scratch)
{
    const int n = r->state->columns;
    int32_t *by_input = scratch, *by_state = scratch + 3 * n, *state = scratch + 6 * n;
    int8_t *held = (int8_t *)(scratch + 7 * n);
    for (int i = 0; i < n; ++i) {
        state[i] = 0;
        held[i] = NAME_hold(&r->held, 0);
    }
    for (int step = 0; step < r->steps; ++step, x += r->input->columns) {
        NAME_product(r->input, x, by_input);
        NAME_product(r->state, held, by_state);
        for (int i = 0; i < n; ++i) {
            const int32_t reset = NAME_logistic(by_input[i] + by_state[i]);
            const int32_t update = NAME_logistic(by_input[n + i] + by_state[n + i]);
            const int32_t fresh = NAME_tanh(by_input[2 * n + i] + NAME_times(reset, by_state[2 * n + i]));
            state[i] = fresh + NAME_times(update, state[i] - fresh);
            held[i] = NAME_hold(&r->held, state[i]);
            y[i] = NAME_hold(&r->out, state[i]);
        }
        y += r->every ? n : 0;
    }
}
