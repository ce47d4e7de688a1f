// Vectors of VECTOR_BYTES bytes as a language extension of GCC and Clang: `a * b + c` is one fused multiply-add where there is one.
template <class T>
inline constexpr int lanes = VECTOR_BYTES / static_cast<int>(sizeof(T));

template <class T>
struct Vectors {
  typedef T type __attribute__((vector_size(VECTOR_BYTES)));
};
template <class T>
using Vector = typename Vectors<T>::type;

// A vector where memory holds elements of type S: several narrow ones are one lane.
template <class T, class S>
struct InMemory {
  typedef T type __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(S)), may_alias));
};

template <class T, class S>
inline __attribute__((always_inline)) Vector<T> load(const S* p) {
  return *reinterpret_cast<const typename InMemory<T, S>::type*>(p);
}

template <class T, class S>
inline __attribute__((always_inline)) void store(S* p, Vector<T> v) {
  *reinterpret_cast<typename InMemory<T, S>::type*>(p) = v;
}

// A load that is done once for several rows: compilers fold it into each of the multiply-adds that use it, and loads are what is scarce.
template <class T>
inline __attribute__((always_inline)) Vector<T> loaded_once(const T* from) {
  Vector<T> x = load<T>(from);
#if defined(__x86_64__)
  asm("" : "+v"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return x;
}

template <class T>
inline __attribute__((always_inline)) Vector<T> broadcast(T value) {
  return value - Vector<T>{};  // a - 0 is a, also for -0, inf and NaN
}

// interleave<odd>(a, b) with runs of `run` lanes: run 2i + odd of a, then run 2i + odd of b, and so on.
// Four lanes, run 1: even {a0, b0, a2, b2}, odd {a1, b1, a3, b3}.
template <int run, int odd, class V, int... lane>
inline __attribute__((always_inline)) V interleaved(V a, V b, Lanes<lane...>) {
  constexpr int n = sizeof...(lane);
  return __builtin_shufflevector(a, b, ((lane / run) % 2 == 0 ? lane + odd * run : n + lane - run + odd * run)...);
}

template <int run, int odd, class T>
inline __attribute__((always_inline)) Vector<T> interleave(Vector<T> a, Vector<T> b, T) {
  return interleaved<run, odd>(a, b, typename CountTo<lanes<T>>::type{});
}

// {x[at[0]], x[at[1]], ...}
template <class T>
inline __attribute__((always_inline)) Vector<T> gathered(const T* x, const int32_t* at) {
  // The masked forms, all lanes on: the others leave their source undefined, which compilers warn about.
#if defined(__x86_64__) && VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, _mm512_loadu_si512(at), x, 4);
  else return _mm512_mask_i32gather_pd(_mm512_setzero_pd(), 0xff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)), x, 8);
#elif defined(__x86_64__) && VECTOR_BYTES == 32
  const __m256i all = _mm256_set1_epi32(-1);
  if constexpr (sizeof(T) == 4) {
    const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    return _mm256_mask_i32gather_ps(_mm256_setzero_ps(), x, index, _mm256_castsi256_ps(all), 4);
  } else {
    return _mm256_mask_i32gather_pd(_mm256_setzero_pd(), x, _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)), _mm256_castsi256_pd(all), 8);
  }
#else
  Vector<T> found;
  for (int i = 0; i < lanes<T>; ++i) found[i] = x[at[i]];
  return found;
#endif
}
