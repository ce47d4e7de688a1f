// The kernels of one instruction set: no include guard, because foreach_isa.h includes this once per target.
namespace truesparse::ISA {
namespace {

#include "vector-inl.h"
#include "storage-inl.h"
#include "values-inl.h"

constexpr int vectors = static_cast<int>(window_lanes) / lanes<float>;  // that make up sixteen lanes

// Sums of one block. A single sample has one for each step of a stop, so that no multiply-add waits for the one before.
template <int rows, int samples>
struct Sums {
  static constexpr int chains = samples == 1 ? static_cast<int>(window_steps) : 1;
  Vector<float> part[samples][rows][chains][vectors];
};

// What the window shows at one stop. A place is in the lowest bits of each lane; those above it are of other places.
template <int bits>
struct View {
  const float* from;
  inline __attribute__((always_inline)) explicit View(const float* x) : from(x) {}
  inline __attribute__((always_inline)) Vector<float> at(Words places) const {
    int32_t columns[lanes<float>];
    store<uint32_t>(reinterpret_cast<uint32_t*>(columns), places & static_cast<uint32_t>(window_columns(bits) - 1));
    return gathered<float>(from, columns);
  }
};

// To the first row of a lane, or to the second where the last bit of the place is set.
template <int bits>
inline __attribute__((always_inline)) void add_to_either(Words places, Vector<float> a, Vector<float> b, Vector<float>& first, Vector<float>& second) {
#if defined(__x86_64__) && VECTOR_BYTES == 64
  const __mmask16 of_second = _mm512_test_epi32_mask((__m512i)places, _mm512_set1_epi32(1 << (bits - 1)));
  first = (Vector<float>)_mm512_mask3_fmadd_ps((__m512)a, (__m512)b, (__m512)first, _knot_mask16(of_second));
  second = (Vector<float>)_mm512_mask3_fmadd_ps((__m512)a, (__m512)b, (__m512)second, of_second);
#else
  const Vector<float> product = a * b;
  const auto of_second = (places & (1u << (bits - 1))) != 0u;
  first += of_second ? Vector<float>{} : product;
  second += of_second ? product : Vector<float>{};
#endif
}

#if defined(__x86_64__) && VECTOR_BYTES == 32
// What every other of 16 places shows. These loads take less time than the instruction that gathers.
inline __attribute__((always_inline)) Vector<float> looked_up(const float* x, const uint16_t* at) {
  const auto four = [&](const uint16_t* own) __attribute__((always_inline)) {
    __m128 found = _mm_load_ss(x + own[0]);
    found = _mm_insert_ps(found, _mm_load_ss(x + own[2]), 0x10);
    found = _mm_insert_ps(found, _mm_load_ss(x + own[4]), 0x20);
    return _mm_insert_ps(found, _mm_load_ss(x + own[6]), 0x30);
  };
  return (Vector<float>)_mm256_insertf128_ps(_mm256_castps128_ps256(four(at)), four(at + 8), 1);
}

template <>
struct View<4> {
  __m256 part[2];
  inline __attribute__((always_inline)) explicit View(const float* x) : part{_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)} {}
  inline __attribute__((always_inline)) Vector<float> at(Words places) const {
    const __m256i own = (__m256i)places;
    const __m256 beyond = _mm256_castsi256_ps(_mm256_slli_epi32(own, 28));
    return (Vector<float>)_mm256_blendv_ps(_mm256_permutevar8x32_ps(part[0], own), _mm256_permutevar8x32_ps(part[1], own), beyond);
  }
};
#elif defined(__aarch64__) && VECTOR_BYTES == 16
template <>
struct View<4> {
  uint8x16x4_t part;
  inline __attribute__((always_inline)) explicit View(const float* x) : part(vld1q_u8_x4(reinterpret_cast<const uint8_t*>(x))) {}
  inline __attribute__((always_inline)) Vector<float> at(Words places) const {
    const Words bytes = (places & 15u) * 0x04040404u + 0x03020100u;
    return (Vector<float>)vqtbl4q_u8(part, (uint8x16_t)bytes);
  }
};
#endif

#if defined(__x86_64__) && VECTOR_BYTES == 64
template <>
struct View<4> {
  const float* from;
  inline __attribute__((always_inline)) explicit View(const float* x) : from(x) {}
  inline __attribute__((always_inline)) Vector<float> at(Words places) const {
    return (Vector<float>)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)places, _mm512_loadu_ps(from));
  }
};
template <>
struct View<5> {
  __m512 part[2];
  inline __attribute__((always_inline)) explicit View(const float* x) : part{_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16)} {}
  inline __attribute__((always_inline)) Vector<float> at(Words places) const {
    return (Vector<float>)_mm512_permutex2var_ps(part[0], (__m512i)places, part[1]);
  }
};

// Twice what `Half` shows.
template <class Half, int columns>
struct Double {
  Half near, far;
  inline __attribute__((always_inline)) explicit Double(const float* x) : near(x), far(x + columns) {}
  inline __attribute__((always_inline)) Vector<float> at(Words places) const {
    const __mmask16 beyond = _mm512_test_epi32_mask((__m512i)places, _mm512_set1_epi32(columns));
    return (Vector<float>)_mm512_mask_blend_ps(beyond, (__m512)near.at(places), (__m512)far.at(places));
  }
};

template <>
struct View<7> : Double<View<5>, 32> {
  inline __attribute__((always_inline)) explicit View(const float* x) : Double(x) {}
};
template <>
struct View<8> : Double<View<7>, 64> {
  inline __attribute__((always_inline)) explicit View(const float* x) : Double(x) {}
};

constexpr int64_t most_samples = 4;  // that share what is read
#else
constexpr int64_t most_samples = 1;
#endif

template <class V, int bits, int shown, int samples>
inline void add_block(const Windows<V>& w, int64_t block, const float* x, int64_t stride, Sums<rows_of_lane(bits), samples>& sums) {
  constexpr int words = words_of_places(bits), room = 32 * words / window_steps, steps = window_steps / shown;
  constexpr int n = lanes<float>, line = 64, chains = Sums<rows_of_lane(bits), samples>::chains;
  // The processor prefetches within a page, and too little of it while there is so much to do for each line.
  constexpr int64_t stops_ahead = 8192 / (window_steps * window_lanes * sizeof(V));
  for (int64_t stop = w.starts[block]; stop < w.starts[block + 1]; ++stop) {
    const uint32_t* places = w.places + stop * words * window_lanes;
    const V* values = w.values + stop * window_steps * window_lanes;
#pragma GCC unroll 4
    for (int i = 0; i < words; ++i) __builtin_prefetch(places + (stops_ahead * words + i) * window_lanes);
#pragma GCC unroll 4
    for (size_t byte = 0; byte < window_steps * window_lanes * sizeof(V); byte += line)
      __builtin_prefetch(reinterpret_cast<const char*>(values + stops_ahead * window_steps * window_lanes) + byte);
#pragma GCC unroll 4
    for (int window = 0; window < shown; ++window) {
      const float* from = x + w.first[stop * shown + window];
      const auto view = [&](int sample) __attribute__((always_inline)) { return View<bits>(from + sample * stride); };
      const View<bits> views[4] = {view(0), view(samples > 1 ? 1 : 0), view(samples > 2 ? 2 : 0), view(samples > 3 ? 3 : 0)};
#pragma GCC unroll 4
      for (int k = window * steps; k < (window + 1) * steps; ++k)
#pragma GCC unroll 4
        for (int i = 0; i < vectors; ++i) {
          const uint32_t* word = places + k * room / 32 * window_lanes + i * n;
          const Vector<float> value = values_at(values + k * window_lanes + i * n);
#pragma GCC unroll 4
          for (int sample = 0; sample < samples; ++sample) {
            auto& part = sums.part[sample];
#if defined(__x86_64__) && VECTOR_BYTES == 32
            if constexpr (bits == 16) {
              part[0][k % chains][i] += value * looked_up(from + sample * stride, reinterpret_cast<const uint16_t*>(word) + k % 2);
              continue;
            }
#endif
            const Words own = (Words)load<uint32_t>(word) >> (k * room % 32);
            const Vector<float> input = views[sample].at(own);
            if constexpr (rows_of_lane(bits) == 1) part[0][k % chains][i] += value * input;
            else add_to_either<bits>(own, value, input, part[0][k % chains][i], part[1][k % chains][i]);
          }
        }
    }
  }
}

template <class V, int bits, int shown, int samples>
void multiply(const Windows<V>& w, int64_t block, const float* bias, bool relu, const float* x, int64_t stride, float* y) {
  constexpr int n = lanes<float>, rows = rows_of_lane(bits);
  Sums<rows, samples> sums = {};
  add_block<V, bits, shown, samples>(w, block, x, stride, sums);
  for (int sample = 0; sample < samples; ++sample)
    for (int row = 0; row < rows; ++row) {
      const int64_t lane = (block * rows + row) * window_lanes;
      float own[window_lanes];
#pragma GCC unroll 4
      for (int i = 0; i < vectors; ++i) {
        const auto& chains = sums.part[sample][row];
        Vector<float> sum = chains[0][i];
        if constexpr (samples == 1) sum = (sum + chains[1][i]) + (chains[2][i] + chains[3][i]);
        if (w.scales) sum *= load<float>(w.scales + lane + i * n);
        if (bias) sum += load<float>(bias + lane + i * n);
        if (relu) sum = sum <= 0.0f ? Vector<float>{} : sum;  // NaN stays
        store<float>(own + i * n, sum);
      }
      for (int i = 0; i < window_lanes; ++i)
        if (const int32_t to = w.order[lane + i]; to >= 0) y[sample * w.rows + to] = own[i];
    }
}

template <class V, int bits, int shown>
void multiply_blocks(const Windows<V>& w, int64_t begin, int64_t end, const float* bias, bool relu, const float* x, int64_t stride, float* y,
                     int64_t batch) {
  for (int64_t block = begin; block < end; ++block) {
    int64_t sample = 0;
    for (; most_samples > 1 && sample + most_samples <= batch; sample += most_samples)
      multiply<V, bits, shown, most_samples>(w, block, bias, relu, x + sample * stride, stride, y + sample * w.rows);
    for (; sample < batch; ++sample) multiply<V, bits, shown, 1>(w, block, bias, relu, x + sample * stride, stride, y + sample * w.rows);
  }
}

template <class V>
void windows_spmv(const Windows<V>& w, int64_t begin, int64_t end, const float* bias, bool relu, const float* x, int64_t stride, float* y,
                  int64_t batch) {
  const auto kernel = w.bits == 4   ? (w.shown == 2 ? multiply_blocks<V, 4, 2> : multiply_blocks<V, 4, 4>)
                      : w.bits == 5 ? multiply_blocks<V, 5, 1>
                      : w.bits == 7 ? multiply_blocks<V, 7, 1>
                      : w.bits == 8 ? multiply_blocks<V, 8, 1>
                                    : multiply_blocks<V, 16, 1>;
  kernel(w, begin, end, bias, relu, x, stride, y, batch);
}

}  // namespace

template <class V>
struct WindowTable {
  static constexpr WindowKernel<V> kernel = windows_spmv<V>;
};

}  // namespace truesparse::ISA
