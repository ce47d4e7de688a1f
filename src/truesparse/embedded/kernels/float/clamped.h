static inline float NAME_clamped(float value, float low, float high)
{
    return value < low ? low : value > high ? high : value; /* NaN stays */
}
