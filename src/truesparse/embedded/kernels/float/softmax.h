static inline void NAME_softmax(const float *x, float *y, int rows, int columns)
{
    for (int row = 0; row < rows; ++row, x += columns, y += columns) {
        float most = x[0], sum = 0.0f;
        for (int i = 1; i < columns; ++i)
            if (x[i] > most)
                most = x[i];
        for (int i = 0; i < columns; ++i)
            sum += y[i] = expf(x[i] - most);
        for (int i = 0; i < columns; ++i)
            y[i] /= sum;
    }
}
