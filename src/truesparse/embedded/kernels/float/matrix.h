/* The weights of a layer. Row by row: how many connections, and of each how many columns further it is than the one before.
   A way of more than 255 columns has a connection of value 0 in between. Without gaps, all columns are connected. */
typedef struct {
    int rows, columns;
    const COUNT_TYPE *counts;
    const uint8_t *gaps;
    const float *values;
    const float *bias;
    float low, high; /* what comes out is clamped to: a ReLU is 0 and infinity */
} NAME_matrix;
