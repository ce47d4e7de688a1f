/* How a state in fixed point becomes an int8: times mantissa / 2^shift, plus zero. */
typedef struct {
    int32_t mantissa;
    int shift, zero;
} NAME_held;

typedef struct {
    const NAME_matrix *input, *state; /* with the rows of all gates */
    int steps;
    int every; /* 1: y gets the states of all steps, 0: that of the last */
    NAME_held held, out; /* the state that is multiplied, and the one that leaves */
} NAME_recurrent;

static inline int8_t NAME_hold(const NAME_held *h, int32_t state)
{
    return NAME_narrowed(state, h->mantissa, h->shift, h->zero, -128, 127);
}
