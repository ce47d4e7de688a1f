/* The weights of a layer. Row by row: how many connections, and of each how many columns further it is than the one before.
   A way of more than 255 columns has a connection of value 0 in between. Without gaps, all columns are connected. */
typedef struct {
    int rows, columns;
    const COUNT_TYPE *counts;
    const uint8_t *gaps;
    const int8_t *values;
    const int32_t *bias;      /* less the zero of the input times the weights of the row */
    const int32_t *mantissas; /* from a sum to an output: times mantissa / 2^shift */
    int shift;
    int zero, low, high;      /* of the output */
} NAME_matrix;
