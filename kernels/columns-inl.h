// The kernels of one instruction set: no include guard, because foreach_isa.h includes this once per target.
namespace truesparse::ISA {
namespace {

#include "vector-inl.h"
#include "storage-inl.h"
#include "values-inl.h"

constexpr int abreast = 8;  // columns that are added at a time: so many streams a processor follows, and a sum is loaded once for all

inline float widened(int8_t number) { return number; }

// `many` columns from `begin` on, of `count` rows rounded up to whole vectors. Those of `next` are fetched meanwhile: the processor cannot know
// which columns will be needed.
template <class V, int many>
inline void add_columns(const Columns<V>& w, int64_t begin, int64_t count, const int32_t* columns, const float* inputs, const int32_t* next,
                        float* sums) {
  constexpr int n = lanes<float>, line = 64 / sizeof(V);
  const V *from[many], *ahead[many];
  Vector<float> input[many];
  const int64_t stride = w.stride();
  for (int j = 0; j < many; ++j) {
    from[j] = w.weight + columns[j] * stride + begin;
    ahead[j] = w.weight + next[j] * stride + begin;
    input[j] = broadcast(inputs[j]);
  }
  for (int64_t row = 0; row < count;) {
#pragma GCC unroll 8
    for (int j = 0; j < many; ++j) __builtin_prefetch(ahead[j] + row, 0, 2);
    for (const int64_t end = row + line < count ? row + line : count; row < end; row += n) {
      Vector<float> sum = load<float>(sums + row);
#pragma GCC unroll 8
      for (int j = 0; j < many; ++j) sum += input[j] * values_at(from[j] + row);
      store<float>(sums + row, sum);
    }
  }
}

// y = sums times scales + bias, each where there are any; `sums` may be y.
inline void finish(const float* sums, int64_t count, const float* scales, const float* bias, bool relu, float* y) {
  constexpr int n = lanes<float>;
  int64_t row = 0;
  for (; row + n <= count; row += n) {
    Vector<float> sum = load<float>(sums + row);
    if (scales) sum *= load<float>(scales + row);
    if (bias) sum += load<float>(bias + row);
    if (relu) sum = sum <= 0.0f ? Vector<float>{} : sum;  // NaN stays
    store<float>(y + row, sum);
  }
  for (; row < count; ++row) {
    float sum = sums[row];
    if (scales) sum *= scales[row];
    if (bias) sum += bias[row];
    y[row] = relu && sum <= 0.0f ? 0.0f : sum;
  }
}

template <class V>
void whole_columns(const Columns<V>& w, int64_t begin, int64_t end, const NonzeroInputs& inputs, const float* bias, bool relu, float* y) {
  float sums[rows_at_once];
  const int64_t count = end - begin;
  __builtin_memset(sums, 0, static_cast<size_t>(count + column_lanes - 1) / column_lanes * column_lanes * sizeof(float));
  int64_t k = 0;
  for (; k + abreast <= inputs.count; k += abreast) {
    const int64_t next = k + 2 * abreast <= inputs.count ? k + abreast : k;
    add_columns<V, abreast>(w, begin, count, inputs.columns + k, inputs.values + k, inputs.columns + next, sums);
  }
  for (; k < inputs.count; ++k) add_columns<V, 1>(w, begin, count, inputs.columns + k, inputs.values + k, inputs.columns + k, sums);
  finish(sums, count, w.scales ? w.scales + begin : nullptr, bias ? bias + begin : nullptr, relu, y + begin);
}

template <class V>
void listed_columns(const ColumnLists<V>& w, int64_t part, const NonzeroInputs& inputs, const float* bias, bool relu, float* y) {
  constexpr int64_t line = 64, part_of_list = 32, step = 4, lists_ahead = 2;
  const int64_t begin = part * w.width, left = w.rows - begin, count = left < w.width ? left : w.width;
  const int32_t* starts = w.starts + part * w.columns;
  float* sums = y + begin;
  __builtin_memset(sums, 0, static_cast<size_t>(count) * sizeof(float));
  for (int64_t k = 0; k < inputs.count; ++k) {
    const int64_t from = starts[inputs.columns[k]], to = starts[inputs.columns[k] + 1];
    const int64_t next = starts[inputs.columns[k + lists_ahead < inputs.count ? k + lists_ahead : k]];
    const float input = inputs.values[k];
    for (int64_t p = from; p < to; p += part_of_list) {
      // The processor cannot know which lists will be needed.
      __builtin_prefetch(w.places + next + (p - from));
#pragma GCC unroll 2
      for (int64_t i = 0; i < part_of_list; i += line / static_cast<int64_t>(sizeof(V))) __builtin_prefetch(w.values + next + (p - from) + i);
      const int64_t end = p + part_of_list < to ? p + part_of_list : to;
      int64_t q = p;
      for (; q + step <= end; q += step) {  // rows of a column differ: none of these waits for another
        float found[step];
#pragma GCC unroll 4
        for (int i = 0; i < step; ++i) found[i] = sums[w.places[q + i]] + input * widened(w.values[q + i]);
#pragma GCC unroll 4
        for (int i = 0; i < step; ++i) sums[w.places[q + i]] = found[i];
      }
      for (; q < end; ++q) sums[w.places[q]] += input * widened(w.values[q]);
    }
  }
  finish(sums, count, w.scales ? w.scales + begin : nullptr, bias ? bias + begin : nullptr, relu, sums);
}

}  // namespace

template <class V>
struct ColumnTable {
  static constexpr ColumnKernel<V> whole = whole_columns<V>;
  static constexpr ColumnListKernel<V> lists = listed_columns<V>;
};

}  // namespace truesparse::ISA
