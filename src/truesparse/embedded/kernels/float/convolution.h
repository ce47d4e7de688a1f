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
} NAME_convolution;

/* sums += weight * the image, shifted by one position of the kernel. Apart, so that its loop has all registers. */
#ifdef __GNUC__
__attribute__((noinline))
#endif
static void NAME_add_image(const NAME_convolution *c, const NAME_tap *t, const float *image, float weight, float *sums)
{
    const int width = t->right - t->left, step = c->step_x;
    const float *line = image + t->start;
    float *sum_line = sums + t->top * c->out_width + t->left;
    for (int lines = t->bottom - t->top; lines > 0; --lines, line += c->step_y, sum_line += c->out_width) {
        const float *from = line;
        float *sum = sum_line;
        for (int i = width; i > 0; --i, from += step)
            *sum++ += weight * *from;
    }
}

/* Each connection adds a shifted image, times its value, to the image of its output channel. */
static inline void NAME_convolve(const NAME_convolution *c, const float *x, float *y)
{
    const NAME_matrix *m = &c->matrix;
    const float *value = m->values;
    const uint8_t *gap = m->gaps;
    for (int row = 0; row < m->rows; ++row, y += c->out_plane) {
        const float *image = x + row / c->group_rows * c->group_channels * c->plane;
        int tap = gap != NULL ? 0 : -1;
        for (int i = 0; i < c->out_plane; ++i)
            y[i] = m->bias[row];
        for (int left = gap != NULL ? m->counts[row] : m->columns; left > 0; --left) {
            const float weight = *value++;
            tap += gap != NULL ? *gap++ : 1;
            for (; tap >= c->kernel; tap -= c->kernel)
                image += c->plane;
            if (weight < 0.0f || weight > 0.0f) /* not one of those in between */
                NAME_add_image(c, &c->taps[tap], image, weight, y);
        }
        for (int i = 0; i < c->out_plane; ++i)
            y[i] = NAME_clamped(y[i], m->low, m->high);
    }
}
