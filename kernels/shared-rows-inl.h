// The kernels of one instruction set: no include guard, because foreach_isa.h includes this once per target.
namespace truesparse::ISA {
namespace {

#include "vector-inl.h"

// What is multiplied side by side: sums in registers, rows or columns times vectors, and what is left of the registers for operands.
constexpr int most_sums = ACCUMULATORS + ACCUMULATORS / 2;
constexpr int most_vectors = ACCUMULATORS < 16 ? 3 : 2;
constexpr int64_t near_vectors = 96 * most_vectors;  // of source, that stay in the nearest cache from one row to the next

// 8 where there are registers for them, else 4.
constexpr int rows_abreast(int vectors) { return 8 * vectors <= most_sums ? 8 : 4; }

// Calls body(columns, vectors from there on, their first element, whether the columns are the first) for all columns and vectors.
template <class T, class Body>
inline __attribute__((always_inline)) void for_near_columns(const SharedColumns<T>& shared, int64_t vectors, Body&& body) {
  const int64_t most = near_vectors / (vectors < most_vectors ? vectors : most_vectors);
  SharedColumns<T> near = shared;
  for (int64_t done = 0; done < shared.count; done += near.count) {
    near.column = shared.column + done;
    near.values = shared.values + done;
    near.count = shared.count - done < most ? shared.count - done : most;
    for (int64_t v = 0; v < vectors; v += most_vectors) body(near, vectors - v, v * lanes<T>, !done);
  }
}

// Values lie in short stretches, as far apart as rows are long: the processor does not see them coming.
template <class T>
inline __attribute__((always_inline)) void prefetch_values(const SharedColumns<T>& shared, int64_t row, int64_t rows) {
  const char* from = reinterpret_cast<const char*>(shared.values + (row < shared.rows ? row * shared.pitch : shared.count));
  const int64_t pitch = shared.pitch * static_cast<int64_t>(sizeof(T)), bytes = shared.count * static_cast<int64_t>(sizeof(T));
  for (int64_t r = 0; r < rows; ++r, from += pitch)
    for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(from + line);
}

// The innermost loops are functions of their own, and count rows by fours: of eight pointers beside the callers' variables compilers keep some
// in memory.
template <class T, int rows, int vectors>
__attribute__((noinline)) void multiply_rows(const SharedColumns<T>& shared, int64_t row, int64_t width, bool first, const T* bias, const T* source,
                                             T* target) {
  constexpr int n = lanes<T>;
  const int64_t count = shared.count, pitch = shared.pitch;
  const int32_t* const column = shared.column;
  const T *low = shared.values + row * pitch, *high = low + (rows > 4 ? 4 * pitch : 0);
  Vector<T> sum[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    const Vector<T> start = broadcast<T>(first && bias ? bias[row + r] : T(0));
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[r][v] = first ? start : load<T>(target + (row + r) * width + v * n);
  }
  for (int64_t i = 0; i < count; ++i, ++low, ++high) {
    const T* const from = source + column[i] * width;
    Vector<T> x[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) x[v] = loaded_once<T>(from + v * n);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const T* const four = r < 4 ? low : high;
      const Vector<T> value = broadcast<T>(four[r % 4 * pitch]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] += value * x[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) store<T>(target + (row + r) * width + v * n, sum[r][v]);
}

template <class T, int vectors = most_vectors>
void multiply_vectors(const SharedColumns<T>& shared, int64_t wanted, int64_t width, bool first, const T* bias, const T* source, T* target) {
  if constexpr (vectors > 1) {
    if (wanted < vectors) return multiply_vectors<T, vectors - 1>(shared, wanted, width, first, bias, source, target);
  }
  constexpr int rows = rows_abreast(vectors);
  for (int64_t row = 0; row < shared.rows; row += rows) {
    if (vectors > 1) prefetch_values(shared, row + rows, rows);  // else there is little to do meanwhile
    multiply_rows<T, rows, vectors>(shared, row, width, first, bias, source, target);
  }
}

template <class T>
void multiply(const SharedColumns<T>& shared, int64_t vectors, bool first, const T* bias, const T* source, T* target) {
  const int64_t width = vectors * lanes<T>;
  if (!shared.count) {
    if (!first) return;
    for (int64_t row = 0; row < shared.rows; ++row)
      for (int64_t v = 0; v < vectors; ++v) store<T>(target + row * width + v * lanes<T>, broadcast<T>(bias ? bias[row] : T(0)));
    return;
  }
  for_near_columns(shared, vectors, [&](const SharedColumns<T>& near, int64_t wanted, int64_t from, bool begins) {
    multiply_vectors<T>(near, wanted, width, first && begins, bias, source + from, target + from);
  });
}

// Here it is rows of the target that stay in registers, and the sums that come and go.
template <class T, int rows, int vectors>
__attribute__((noinline)) void spread_rows(const SharedColumns<T>& shared, int64_t row, int64_t width, const T* dtarget, T* dsource) {
  constexpr int n = lanes<T>;
  const int64_t count = shared.count, pitch = shared.pitch;
  const int32_t* const column = shared.column;
  const T *low = shared.values + row * pitch, *high = low + (rows > 4 ? 4 * pitch : 0);
  Vector<T> dy[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) dy[r][v] = load<T>(dtarget + (row + r) * width + v * n);
  }
  for (int64_t i = 0; i < count; ++i, ++low, ++high) {
    T* const to = dsource + column[i] * width;
    Vector<T> sum[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[v] = load<T>(to + v * n);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const T* const four = r < 4 ? low : high;
      const Vector<T> value = broadcast<T>(four[r % 4 * pitch]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[v] += value * dy[r][v];
    }
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) store<T>(to + v * n, sum[v]);
  }
}

template <class T, int vectors = most_vectors>
void spread_vectors(const SharedColumns<T>& shared, int64_t wanted, int64_t width, const T* dtarget, T* dsource) {
  if constexpr (vectors > 1) {
    if (wanted < vectors) return spread_vectors<T, vectors - 1>(shared, wanted, width, dtarget, dsource);
  }
  constexpr int rows = rows_abreast(vectors);
  for (int64_t row = 0; row < shared.rows; row += rows) {
    prefetch_values(shared, row + rows, rows);
    spread_rows<T, rows, vectors>(shared, row, width, dtarget, dsource);
  }
}

template <class T>
void spread(const SharedColumns<T>& shared, int64_t vectors, const T* dtarget, T* dsource) {
  for_near_columns(shared, vectors, [&](const SharedColumns<T>& near, int64_t wanted, int64_t from, bool) {
    spread_vectors<T>(near, wanted, vectors * lanes<T>, dtarget + from, dsource + from);
  });
}

// Lanes are rows: no sum is taken across a vector. Columns that are missing from the last few are computed as copies of the last one.
template <class T, int columns, int vectors>
__attribute__((noinline)) void correlate_columns(const SharedColumns<T>& shared, int64_t begin, int64_t row, int64_t width, int64_t samples, bool first,
                                                 const T* dtarget, const T* source, T* dvalues) {
  constexpr int n = lanes<T>;
  const int64_t count = shared.count - begin < columns ? shared.count - begin : columns;
  const T* x[columns];
  Vector<T> sum[columns][vectors];
#pragma GCC unroll 16
  for (int c = 0; c < columns; ++c) {
    x[c] = source + shared.column[begin + (c < count ? c : count - 1)] * width;
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[c][v] = Vector<T>{};
  }
  const T* from = dtarget + row;
  for (int64_t sample = 0; sample < samples; ++sample, from += shared.rows) {
    Vector<T> dy[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) dy[v] = loaded_once<T>(from + v * n);
#pragma GCC unroll 16
    for (int c = 0; c < columns; ++c) {
      const Vector<T> one = broadcast<T>(x[c][sample]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[c][v] += one * dy[v];
    }
  }
  T* to = dvalues + begin * shared.rows + row;
#pragma GCC unroll 16
  for (int c = 0; c < columns; ++c) {
    if (c >= count) break;
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      T* const own = to + c * shared.rows + v * n;
      store<T>(own, first ? sum[c][v] : load<T>(own) + sum[c][v]);
    }
  }
}

template <class T, int vectors = ACCUMULATORS < 16 ? 2 : 4>
void correlate(const SharedColumns<T>& shared, int64_t own_vectors, int64_t samples, bool first, const T* dtarget, const T* source, T* dvalues) {
  constexpr int n = lanes<T>, together = vectors * n;
  if constexpr (vectors > 1) {
    if (shared.rows % together) return correlate<T, vectors / 2>(shared, own_vectors, samples, first, dtarget, source, dvalues);
  }
  constexpr int columns = vectors == 1 ? 8 : 6;
  for (int64_t begin = 0; begin < shared.count; begin += columns)
    for (int64_t row = 0; row < shared.rows; row += together)
      correlate_columns<T, columns, vectors>(shared, begin, row, own_vectors * n, samples, first, dtarget, source, dvalues);
}

}  // namespace

template <class T>
struct SharedRowTable {
  static constexpr SharedRowKernels<T> table = {256 / (most_vectors * VECTOR_BYTES) * most_vectors, multiply<T>, spread<T>, correlate<T>};
};

}  // namespace truesparse::ISA
