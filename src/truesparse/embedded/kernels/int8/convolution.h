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

/* sums += weight * the image, shifted by one position of the kernel. Apart, so that its loop has all registers. */
#ifdef __GNUC__
__attribute__((noinline))
#endif
static void NAME_add_image(const NAME_convolution *c, const NAME_tap *t, const int8_t *image, int weight, int32_t *sums)
{
    const int width = t->right - t->left, step = c->step_x;
    const int8_t *line = image + t->start;
    int32_t *sum_line = sums + t->top * c->out_width + t->left;
    for (int lines = t->bottom - t->top; lines > 0; --lines, line += c->step_y, sum_line += c->out_width) {
        const int8_t *from = line;
        int32_t *sum = sum_line;
        for (int i = width; i > 0; --i, from += step)
            *sum++ += weight * *from;
    }
}

/* Where that position sees no image, the sums get what stands for 0: above, below, left and right of it. */
static inline void NAME_add_outside(const NAME_convolution *c, const NAME_tap *t, int32_t term, int32_t *sums)
{
    const int height = c->out_plane / c->out_width, top = t->top, bottom = t->bottom, left = t->left, right = t->right;
    if (term == 0 || (bottom - top) * (right - left) == c->out_plane)
        return;
    for (int y = 0; y < height; ++y, sums += c->out_width) {
        const int inside = y >= top && y < bottom;
        for (int x = 0; x < (inside ? left : c->out_width); ++x)
            sums[x] += term;
        for (int x = inside ? right : c->out_width; x < c->out_width; ++x)
            sums[x] += term;
    }
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
        for (int left = gap != NULL ? m->counts[row] : m->columns; left > 0; --left) {
            const int weight = *value++;
            tap += gap != NULL ? *gap++ : 1;
            for (; tap >= c->kernel; tap -= c->kernel)
                image += c->plane;
            if (weight != 0) { /* not one of those in between */
                NAME_add_image(c, &c->taps[tap], image, weight, sums);
                NAME_add_outside(c, &c->taps[tap], weight * c->outside, sums);
            }
        }
        for (int i = 0; i < c->out_plane; ++i)
            y[i] = NAME_narrowed(sums[i], m->mantissas[row], m->shift, m->zero, m->low, m->high);
    }
}
