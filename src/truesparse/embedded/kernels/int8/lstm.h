/* Gates: input, forget, cell, output. `scratch` holds both products, the cells, and the int8 of the state that is multiplied. */
static inline void NAME_lstm(const NAME_recurrent *r, const int8_t *x, int8_t *y, int32_t *scratch)
{
    const int n = r->state->columns;
    int32_t *by_input = scratch, *by_state = scratch + 4 * n, *cell = scratch + 8 * n;
    int8_t *held = (int8_t *)(scratch + 9 * n);
    for (int i = 0; i < n; ++i) {
        cell[i] = 0;
        held[i] = NAME_hold(&r->held, 0);
    }
    for (int step = 0; step < r->steps; ++step, x += r->input->columns) {
        NAME_product(r->input, x, by_input);
        NAME_product(r->state, held, by_state);
        for (int i = 0; i < n; ++i) {
            const int32_t take = NAME_logistic(by_input[i] + by_state[i]);
            const int32_t forget = NAME_logistic(by_input[n + i] + by_state[n + i]);
            const int32_t fresh = NAME_tanh(by_input[2 * n + i] + by_state[2 * n + i]);
            const int32_t give = NAME_logistic(by_input[3 * n + i] + by_state[3 * n + i]);
            cell[i] = NAME_times(forget, cell[i]) + NAME_times(take, fresh);
            const int32_t state = NAME_times(give, NAME_tanh(cell[i]));
            held[i] = NAME_hold(&r->held, state);
            y[i] = NAME_hold(&r->out, state);
        }
        y += r->every ? n : 0;
    }
}
