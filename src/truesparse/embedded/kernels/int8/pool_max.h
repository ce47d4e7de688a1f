static inline void NAME_pool_max(const NAME_pool *p, const int8_t *x, int8_t *y)
{
    for (int channel = 0; channel < p->channels; ++channel, x += p->height * p->width)
        for (int oy = 0; oy < p->out_height; ++oy)
            for (int ox = 0; ox < p->out_width; ++ox) {
                int8_t most = INT8_MIN;
                for (int ky = 0; ky < p->kernel_y; ++ky)
                    for (int kx = 0; kx < p->kernel_x; ++kx) {
                        const int iy = oy * p->stride_y + ky * p->dilation_y - p->top;
                        const int ix = ox * p->stride_x + kx * p->dilation_x - p->left;
                        if (iy >= 0 && iy < p->height && ix >= 0 && ix < p->width && x[iy * p->width + ix] > most)
                            most = x[iy * p->width + ix];
                    }
                *y++ = most;
            }
}
