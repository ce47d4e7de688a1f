typedef struct {
    int channels, height, width, out_height, out_width;
    int kernel_y, kernel_x, stride_y, stride_x, dilation_y, dilation_x;
    int top, left;    /* rows and columns of padding before the image */
    int divisor;      /* of a mean; 0: as many as are inside the image */
    int zero;
} NAME_pool;
