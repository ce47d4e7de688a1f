// Users' tensors hold numbers of type S, the arithmetic has numbers of type T: the same, or a float for each bfloat16.

// How many S take the room of one T. In a vector that is loaded from memory, they share a lane, the first one in its lower bits.
template <class T, class S>
inline constexpr int per_lane = static_cast<int>(sizeof(T) / sizeof(S));

typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));

// The bits of floats, one or a vector of them, after rounding to the nearest float whose lower half is zero, ties to even; NaN stays NaN.
template <class Bits>
inline __attribute__((always_inline)) Bits rounded(Bits bits) {
  const Bits nan = -((0x7f800000u - (bits & 0x7fffffffu)) >> 31);  // all bits set, or none
  return (bits + (((bits >> 16 & 1u) + 0x7fffu) & ~nan)) | (nan & 0x400000u);
}

template <class T>
inline T widened(T number) {
  return number;
}
inline float widened(Bfloat16 number) {
  const uint32_t bits = static_cast<uint32_t>(number.bits) << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline void put(double number, double* to) { *to = number; }
inline void put(float number, float* to) { *to = number; }
inline void put(float number, Bfloat16* to) {
  uint32_t bits;
  __builtin_memcpy(&bits, &number, sizeof bits);
  to->bits = static_cast<uint16_t>(rounded(bits) >> 16);
}

// From the S at place `part` of each lane.
template <class T, class S, int part>
inline __attribute__((always_inline)) Vector<T> widened(Vector<T> lanes) {
  if constexpr (per_lane<T, S> == 1) return lanes;
  else if constexpr (part == 0) return (Vector<T>)((Words)lanes << 16);
  else return (Vector<T>)((Words)lanes & 0xffff0000u);
}

// The other way: the numbers of one lane are side by side in memory. Without a second place, `second` is not looked at.
template <class T, class S>
inline __attribute__((always_inline)) Vector<T> narrowed(Vector<T> first, Vector<T> second) {
  if constexpr (per_lane<T, S> == 1) return first;
  else return (Vector<T>)(rounded((Words)first) >> 16 | (rounded((Words)second) & 0xffff0000u));
}

typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint16_t HalvesInMemory __attribute__((vector_size(VECTOR_BYTES / 2), aligned(alignof(uint16_t)), may_alias));

template <class T, class S>
void widen(const S* from, int64_t count, T* to) {
  constexpr int n = lanes<T>;
  if constexpr (per_lane<T, S> == 1) {
    __builtin_memcpy(to, from, count * sizeof(T));
  } else {
    int64_t i = 0;
    for (; i + n <= count; i += n)
      store<T>(to + i, (Vector<T>)(__builtin_convertvector((Halves)*reinterpret_cast<const HalvesInMemory*>(from + i), Words) << 16));
    for (; i < count; ++i) to[i] = widened(from[i]);
  }
}

template <class T, class S>
void narrow(const T* from, int64_t count, S* to) {
  constexpr int n = lanes<T>;
  if constexpr (per_lane<T, S> == 1) {
    __builtin_memcpy(to, from, count * sizeof(T));
  } else {
    int64_t i = 0;
    for (; i + n <= count; i += n)
      *reinterpret_cast<HalvesInMemory*>(to + i) = __builtin_convertvector(rounded((Words)load<T>(from + i)) >> 16, Halves);
    for (; i < count; ++i) put(from[i], to + i);
  }
}
