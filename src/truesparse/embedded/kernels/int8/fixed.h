/* Fixed point: 32768 is 1. */
enum { NAME_ONE = 32768 };

/* value * mantissa / 2^shift to the nearest, halves away from zero; at most 512, where no gate changes any more. */
static inline int32_t NAME_fixed(int32_t value, int32_t mantissa, int shift)
{
    const uint32_t magnitude = value < 0 ? 0u - (uint32_t)value : (uint32_t)value;
    const uint64_t product = ((uint64_t)magnitude * (uint32_t)mantissa + ((uint64_t)1 << (shift - 1))) >> shift;
    const int32_t limited = product < 512 * NAME_ONE ? (int32_t)product : 512 * NAME_ONE;
    return value < 0 ? -limited : limited;
}

/* The product of two, to the nearest, halves away from zero. */
static inline int32_t NAME_times(int32_t x, int32_t y)
{
    const int64_t product = (int64_t)x * y;
    return (int32_t)((product + (product < 0 ? -NAME_ONE / 2 : NAME_ONE / 2)) / NAME_ONE);
}

/* 1 / (1 + exp(-x)) at 0, 1/16, ..., 16 */
static const uint16_t NAME_logistic_parts[257] = {
LOGISTIC
};

/* 1 / (1 + exp(-x)), on straight lines between these */
static inline int32_t NAME_logistic(int32_t x)
{
    int32_t magnitude = x < 0 ? -x : x;
    magnitude = magnitude < 16 * NAME_ONE ? magnitude : 16 * NAME_ONE - 1;
    const uint16_t *part = NAME_logistic_parts + magnitude / 2048;
    const int32_t value = part[0] + ((part[1] - part[0]) * (magnitude % 2048) + 1024) / 2048;
    return x < 0 ? NAME_ONE - value : value;
}

static inline int32_t NAME_tanh(int32_t x)
{
    const int32_t within = x < -8 * NAME_ONE ? -8 * NAME_ONE : x > 8 * NAME_ONE ? 8 * NAME_ONE : x;
    return 2 * NAME_logistic(2 * within) - NAME_ONE;
}
