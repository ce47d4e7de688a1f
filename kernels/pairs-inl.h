// The kernels of one instruction set: no include guard, because foreach_isa.h includes this once per target.
namespace truesparse::ISA {
namespace {

#include "vector-inl.h"

constexpr int widest_tile = 4;  // vectors: more would have the values read less often, and blocks of fewer columns

constexpr int most_vectors(int abreast) {
  const int fitting = ACCUMULATORS / (2 * abreast);
  return fitting > widest_tile ? widest_tile : fitting;
}

// The places of one step, read at once.
template <int count>
struct Places {
  uint64_t word = 0;

  inline __attribute__((always_inline)) explicit Places(const uint16_t* from) { __builtin_memcpy(&word, from, count * sizeof(uint16_t)); }
  inline __attribute__((always_inline)) uint64_t operator[](int i) const { return word >> (16 * i) & 0xffff; }
};

inline __attribute__((always_inline)) const float* placed(const float* source, uint64_t place, uint64_t tile) {
  return reinterpret_cast<const float*>(reinterpret_cast<const char*>(source) + place * (tile * sizeof(float) / place_unit));
}

template <int abreast, int vectors>
inline __attribute__((always_inline)) void add_group(PairGroups& groups, const float* source, float* target) {
  constexpr int n = lanes<float>, rows = 2 * abreast, tile = vectors * n;
  static_assert(tile * sizeof(float) % place_unit == 0);
  float* to[rows];
  Vector<float> sum[rows][vectors];
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    to[r] = target + static_cast<int64_t>(groups.members[r]) * tile;
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[r][v] = load<float>(to[r] + v * n);
  }
  const uint16_t* places = groups.places;
  const float* values = groups.values;
  for (int64_t step = 0; step < groups.steps[0]; ++step, places += abreast, values += rows) {
    const Places<abreast> at(places);
#pragma GCC unroll 2
    for (int pair = 0; pair < abreast; ++pair) {
      const float* from = placed(source, at[pair], tile);
      const Vector<float> first = broadcast<float>(values[2 * pair]), second = broadcast<float>(values[2 * pair + 1]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        const Vector<float> x = loaded_once(from + v * n);
        sum[2 * pair][v] += first * x;
        sum[2 * pair + 1][v] += second * x;
      }
    }
  }
  for (int64_t step = 0; step < groups.steps[1]; ++step, places += rows, values += rows) {
    const Places<rows> at(places);
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const float* from = placed(source, at[r], tile);
      const Vector<float> value = broadcast<float>(values[r]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] += value * load<float>(from + v * n);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) store<float>(to[r] + v * n, sum[r][v]);
  }
  groups.steps += 2;
  groups.members += rows;
  groups.places = places;
  groups.values = values;
}

template <int abreast, int vectors = most_vectors(abreast)>
void add_groups(PairGroups& groups, int64_t count, int64_t wanted, const float* source, float* target) {
  if constexpr (vectors > 1) {
    if (wanted < vectors) return add_groups<abreast, vectors - 1>(groups, count, wanted, source, target);
  }
  constexpr int64_t ahead = 4;  // groups whose sums are asked for: their rows are anywhere
  PairGroups own = groups;
  for (int64_t group = 0; group < count; ++group) {
    if (group + ahead < count) {
#pragma GCC unroll 4
      for (int r = 0; r < 2 * abreast; ++r) {
        const char* next = reinterpret_cast<const char*>(target + static_cast<int64_t>(own.members[2 * abreast * ahead + r]) * vectors * lanes<float>);
        for (int64_t line = 0; line < vectors * VECTOR_BYTES; line += 64) __builtin_prefetch(next + line, 1);
      }
    }
    add_group<abreast, vectors>(own, source, target);
  }
  groups = own;
}

void add(PairGroups& groups, int64_t count, int64_t vectors, const float* source, float* target) {
  if (groups.abreast == 1) add_groups<1>(groups, count, vectors, source, target);
  else add_groups<2>(groups, count, vectors, source, target);
}

void begin(int64_t rows, int64_t vectors, const float* bias, float* target) {
  for (int64_t row = 0; row < rows; ++row) {
    const Vector<float> start = broadcast<float>(bias ? bias[row] : 0.0f);
    for (int64_t v = 0; v < vectors; ++v, target += lanes<float>) store<float>(target, start);
  }
}

void rectify(int64_t rows, int64_t vectors, float* target) {
  for (int64_t i = 0; i < rows * vectors; ++i, target += lanes<float>) {
    const Vector<float> sum = load<float>(target);
    store<float>(target, sum <= 0.0f ? Vector<float>{} : sum);  // NaN stays
  }
}

int64_t most_vectors_of(int64_t abreast) { return most_vectors(static_cast<int>(abreast)); }

}  // namespace

struct PairTable {
  static constexpr PairKernels table = {most_vectors_of, add, begin, rectify};
};

}  // namespace truesparse::ISA
