/* A function of one number, by its table: y may be x. */
static inline void NAME_function(const int8_t *x, int8_t *y, int n, const int8_t *table)
{
    for (int i = 0; i < n; ++i)
        y[i] = table[x[i] + 128];
}
