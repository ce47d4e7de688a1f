typedef struct {
    int channels, height, width, out_height, out_width;
    int kernel_y, kernel_x, stride_y, stride_x, dilation_y, dilation_x;
    int top, left;    /* rows and columns of padding before the image */
    int divisor;      /* of a mean; 0: as many as are inside the image */
    int zero; /* of a mean, as the next ones */
    int32_t mantissa; /* from 256ths of a step of the input to steps of the output: times mantissa / 2^shift */
    int shift, out_zero;
} NAME_pool;
