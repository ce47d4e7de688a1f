/* To the nearest, halves away from zero. */
static inline int32_t NAME_divided(int32_t sum, int32_t count)
{
    return sum >= 0 ? (sum + count / 2) / count : -((count / 2 - sum) / count);
}
