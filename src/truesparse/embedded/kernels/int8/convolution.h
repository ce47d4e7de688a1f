/* The outputs whose input at one position of the kernel is inside the image, and where the first of these inputs is. */
typedef struct {
    uint16_t top, bottom, left, right; /* the second of each pair is one past the end */
    uint16_t start;
} NAME_tap;

typedef struct {
    NAME_matrix matrix;    /* its columns: channel by channel, of each all positions of the kernel */
    const NAME_tap *taps;  /* of each position of the kernel */
    int kernel;            /* positions */
    int plane;             /* numbers of an input channel */
    int out_plane, out_width;
    int step_y, step_x;    /* in the input, from an output to the next one below, and beside */
    int group_rows, group_channels;
    int outside;           /* what stands for 0 around the image */
} NAME_convolution;

/* Where a position of the kernel sees no image, the sums get what stands for 0. */
static inline void NAME_add_outside(const NAME_convolution *c, const NAME_tap *t, int32_t *sums, int32_t term)
{
    const int all = c->out_plane == (t->bottom - t->top) * (t->right - t->left);
    for (int y = 0, i = 0; !all && i < c->out_plane; ++y)
        for (int x = 0; x < c->out_width; ++x, ++i)
            if (y < t->top || y >= t->bottom || x < t->left || x >= t->right)
                sums[i] += term;
}

/* Each connection adds a shifted image, times its value, to the sums of its output channel. */
static inline void NAME_convolve(const NAME_convolution *c, const int8_t *x, int8_t *y, int32_t *sums)
{
    const NAME_matrix *m = &c->matrix;
    const int8_t *value = m->values;
    const uint8_t *gap = m->gaps;
    for (int row = 0; row < m->rows; ++row, y += c->out_plane) {
        const int8_t *image = x + row / c->group_rows * c->group_channels * c->plane;
        int tap = gap != NULL ? 0 : -1;
        for (int i = 0; i < c->out_plane; ++i)
            sums[i] = m->bias[row];
        for (int left = gap != NULL ? m->counts[row] : m->columns; left > 0; --left, ++value) {
            tap += gap != NULL ? *gap++ : 1;
            for (; tap >= c->kernel; tap -= c->kernel)
                image += c->plane;
            if (*value != 0) { /* not one of those in between */
                const NAME_tap *t = &c->taps[tap];
                const int8_t *in = image + t->start;
                int32_t *to = sums + t->top * c->out_width;
                for (int lines = t->bottom - t->top; lines > 0; --lines, in += c->step_y, to += c->out_width)
                    for (int i = t->left, from = 0; i < t->right; ++i, from += c->step_x)
                        to[i] += *value * in[from];
                NAME_add_outside(c, t, sums, *value * c->outside);
            }
        }
        for (int i = 0; i < c->out_plane; ++i)
            y[i] = NAME_narrowed(sums[i], m->mantissas[row], m->shift, m->zero, m->low, m->high);
    }
}
