/* Floats to int8 and back: a number is SCALE * (q - ZERO). */
static inline void NAME_quantise(const float *x, int8_t *q, int n)
{
    for (int i = 0; i < n; ++i) {
        float way = x[i] * NAME_INPUT_INVERSE_SCALE;
        way = way > NAME_INPUT_LEAST ? way : way <= NAME_INPUT_LEAST ? NAME_INPUT_LEAST : 0.0f; /* NaN becomes 0 */
        way = way < NAME_INPUT_MOST ? way : NAME_INPUT_MOST;
        q[i] = (int8_t)((int)(way + (way < 0.0f ? -0.5f : 0.5f)) + NAME_INPUT_ZERO);
    }
}

static inline int NAME_predict(const float *x, float *y)
{
    NAME_STORAGE int8_t in[NAME_INPUT_SIZE], out[NAME_OUTPUT_SIZE];
    if (x == NULL || y == NULL)
        return -1;
    NAME_quantise(x, in, NAME_INPUT_SIZE);
    NAME_predict_int8(in, out);
    for (int i = 0; i < NAME_OUTPUT_SIZE; ++i)
        y[i] = (float)(out[i] - NAME_OUTPUT_ZERO) * NAME_OUTPUT_SCALE;
    return 0;
}
