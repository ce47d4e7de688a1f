/* Input, forget, cell, output. y may be the state, and new_cell the cell. */
static inline void NAME_lstm_gates(int n, const float *by_input, const float *by_state, const float *cell, float *y, float *new_cell)
{
    for (int i = 0; i < n; ++i) {
        const float take = NAME_logistic(by_input[i] + by_state[i]);
        const float forget = NAME_logistic(by_input[n + i] + by_state[n + i]);
        const float fresh = tanhf(by_input[2 * n + i] + by_state[2 * n + i]);
        new_cell[i] = forget * cell[i] + take * fresh;
        y[i] = NAME_logistic(by_input[3 * n + i] + by_state[3 * n + i]) * tanhf(new_cell[i]);
    }
}
