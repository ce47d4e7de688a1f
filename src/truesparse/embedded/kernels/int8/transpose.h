static inline void NAME_transpose(const int8_t *x, int8_t *y, int rows, int columns)
{
    for (int column = 0; column < columns; ++column)
        for (int row = 0; row < rows; ++row)
            *y++ = x[row * columns + column];
}
