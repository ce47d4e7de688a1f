// A vector of floats from memory that holds them as float, Bfloat16 or int8_t.
inline __attribute__((always_inline)) Vector<float> values_at(const float* from) { return load<float>(from); }
#if defined(__x86_64__) && VECTOR_BYTES >= 32
// Of conversions between vectors of different sizes, compilers make many instructions, or one for each element.
#if VECTOR_BYTES == 64
inline __attribute__((always_inline)) Vector<float> values_at(const Bfloat16* from) {
  return (Vector<float>)((Words)_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))) << 16);
}
inline __attribute__((always_inline)) Vector<float> values_at(const int8_t* from) {
  const __m512i wide = _mm512_maskz_cvtepi8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return (Vector<float>)_mm512_maskz_cvtepi32_ps(0xffff, wide);
}
#else
inline __attribute__((always_inline)) Vector<float> values_at(const Bfloat16* from) {
  return (Vector<float>)((Words)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))) << 16);
}
inline __attribute__((always_inline)) Vector<float> values_at(const int8_t* from) {
  return (Vector<float>)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}
#endif
#else
typedef int8_t BytesInMemory __attribute__((vector_size(VECTOR_BYTES / 4), aligned(1), may_alias));

inline __attribute__((always_inline)) Vector<float> values_at(const Bfloat16* from) {
  return (Vector<float>)(__builtin_convertvector((Halves)*reinterpret_cast<const HalvesInMemory*>(from), Words) << 16);
}
inline __attribute__((always_inline)) Vector<float> values_at(const int8_t* from) {
  return __builtin_convertvector(*reinterpret_cast<const BytesInMemory*>(from), Vector<float>);
}
#endif
