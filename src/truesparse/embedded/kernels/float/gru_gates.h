/* Reset, update, new. y may be the state. */
static inline void NAME_gru_gates(int n, const float *by_input, const float *by_state, const float *state, float *y)
{
    for (int i = 0; i < n; ++i) {
        const float reset = NAME_logistic(by_input[i] + by_state[i]);
        const float update = NAME_logistic(by_input[n + i] + by_state[n + i]);
        const float fresh = tanhf(by_input[2 * n + i] + reset * by_state[2 * n + i]);
        y[i] = fresh + update * (state[i] - fresh);
    }
}
