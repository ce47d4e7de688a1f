static inline void NAME_pool_mean(const NAME_pool *p, const int8_t *x, int8_t *y)
{
    for (int channel = 0; channel < p->channels; ++channel, x += p->height * p->width)
        for (int oy = 0; oy < p->out_height; ++oy)
            for (int ox = 0; ox < p->out_width; ++ox) {
                int32_t sum = 0, inside = 0;
                for (int ky = 0; ky < p->kernel_y; ++ky)
                    for (int kx = 0; kx < p->kernel_x; ++kx) {
                        const int iy = oy * p->stride_y + ky - p->top;
                        const int ix = ox * p->stride_x + kx - p->left;
                        if (iy >= 0 && iy < p->height && ix >= 0 && ix < p->width) {
                            sum += x[iy * p->width + ix] - p->zero;
                            ++inside;
                        }
                    }
                const int32_t mean = NAME_divided(256 * sum, p->divisor != 0 ? p->divisor : inside);
                *y++ = NAME_narrowed(mean, p->mantissa, p->shift, p->out_zero, -128, 127);
            }
}
