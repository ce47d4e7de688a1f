/* value * mantissa / 2^shift to the nearest, halves away from zero; plus zero; clamped. */
static inline int8_t NAME_narrowed(int32_t value, int32_t mantissa, int shift, int zero, int low, int high)
{
    const int64_t product = (int64_t)value * mantissa, half = (int64_t)1 << (shift - 1);
    const int64_t rounded = product >= 0 ? (product + half) >> shift : -((half - product) >> shift);
    const int64_t moved = rounded + zero;
    return (int8_t)(moved < low ? low : moved > high ? high : moved);
}
