/* value * mantissa / 2^shift to the nearest, halves away from zero; plus zero; clamped. */
static inline int8_t NAME_narrowed(int32_t value, int32_t mantissa, int shift, int zero, int low, int high)
{
    const uint32_t magnitude = value < 0 ? 0u - (uint32_t)value : (uint32_t)value;
    const uint64_t product = (uint64_t)magnitude * (uint32_t)mantissa;
    uint32_t twice = 1023; /* from here on it is beyond every int8, whatever zero is */
    if (shift > 32) /* the upper half alone: an instruction on 32-bit processors */
        twice = (uint32_t)(product >> 32) >> (shift - 33);
    else if (product >> (shift - 1) < 1023)
        twice = (uint32_t)(product >> (shift - 1));
    const int rounded = twice < 1023 ? (int)((twice + 1) >> 1) : 512;
    const int moved = (value < 0 ? -rounded : rounded) + zero;
    return (int8_t)(moved < low ? low : moved > high ? high : moved);
}
