/* `scratch` holds both products, and the int8 of the state that is multiplied. */
static inline void NAME_rnn_tanh(const NAME_recurrent *r, const int8_t *x, int8_t *y, int32_t *scratch)
{
    const int n = r->state->columns;
    int32_t *by_input = scratch, *by_state = scratch + n;
    int8_t *held = (int8_t *)(scratch + 2 * n);
    for (int i = 0; i < n; ++i)
        held[i] = NAME_hold(&r->held, 0);
    for (int step = 0; step < r->steps; ++step, x += r->input->columns) {
        NAME_product(r->input, x, by_input);
        NAME_product(r->state, held, by_state);
        for (int i = 0; i < n; ++i) {
            const int32_t state = NAME_tanh(by_input[i] + by_state[i]);
            held[i] = NAME_hold(&r->held, state);
            y[i] = NAME_hold(&r->out, state);
        }
        y += r->every ? n : 0;
    }
}
