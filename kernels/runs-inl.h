// The kernels of one instruction set: no include guard, because foreach_isa.h includes this once per target.
namespace truesparse::ISA {
namespace {

#include "vector-inl.h"

// Rows are anywhere: what the next runs add to, or multiply with, is asked for.
template <int vectors, int write, class T>
inline __attribute__((always_inline)) void prefetch_row(const T* row) {
  const char* const from = reinterpret_cast<const char*>(row);
  for (int64_t line = 0; line < vectors * VECTOR_BYTES; line += 64) __builtin_prefetch(from + line, write);
}

constexpr int64_t rows_ahead = 4, values_ahead = 10;  // runs

// Columns of a matrix are tiles apart, which is known beforehand.
template <int tile, class Place>
inline __attribute__((always_inline)) int64_t unit_of(const Steps<Place>& steps) {
  if constexpr (sizeof(Place) == 2) return tile;
  else return steps.unit;
}

// A run of `alike` rows: where it reads and writes.
template <class T, class Place, int alike>
struct Lines {
  const Place* place;
  int64_t length, unit;
  const T* values[alike];
  const T* source;
  T* to[alike];
  T start[alike];  // of the sums, if they do not go on

  inline __attribute__((always_inline)) Lines from_vector(int vector) const {
    Lines rest = *this;
    rest.source += vector * lanes<T>;
    for (int r = 0; r < alike; ++r) rest.to[r] += vector * lanes<T>;
    return rest;
  }
};

template <class T, int alike, int vectors, class Place>
inline __attribute__((always_inline)) void multiply_run(const Lines<T, Place, alike>& run, bool first) {
  constexpr int n = lanes<T>;
  Vector<T> sum[alike][vectors];
#pragma GCC unroll 4
  for (int r = 0; r < alike; ++r) {
    if (first) {
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sum[r][v] = broadcast<T>(run.start[r]);
    } else {
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sum[r][v] = load<T>(run.to[r] + v * n);
    }
  }
  for (int64_t p = 0; p < run.length; ++p) {
    const T* const from = run.source + int64_t{run.place[p]} * run.unit;
    if constexpr (alike == 1) {
      const Vector<T> value = broadcast<T>(run.values[0][p]);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sum[0][v] += value * load<T>(from + v * n);
    } else {
      Vector<T> x[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) x[v] = loaded_once<T>(from + v * n);
#pragma GCC unroll 4
      for (int r = 0; r < alike; ++r) {
        const Vector<T> value = broadcast<T>(run.values[r][p]);
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) sum[r][v] += value * x[v];
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < alike; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) store<T>(run.to[r] + v * n, sum[r][v]);
}

// As many vectors at a time as there are registers for.
template <class T, int alike, int vectors, class Place>
inline __attribute__((always_inline)) void multiply_vectors(const Lines<T, Place, alike>& run, bool first) {
  if constexpr (alike > 1 && alike * vectors > ACCUMULATORS) {
    constexpr int half = (vectors + 1) / 2;
    multiply_vectors<T, alike, half>(run, first);
    multiply_vectors<T, alike, vectors - half>(run.from_vector(half), first);
  } else {
    multiply_run<T, alike, vectors>(run, first);
  }
}

template <class T, int alike, int vectors, class Place>
void multiply_runs(RunCursor<Place>& runs, int64_t count, const Steps<Place>& steps, bool first, const T* values, const T* bias, const T* source, T* target) {
  RunCursor<Place> own = runs;
  Lines<T, Place, alike> run;
  run.unit = unit_of<vectors * lanes<T>>(steps);
  run.source = source;
  const int64_t stride = steps.stride;
  for (int64_t i = 0; i < count; ++i) {
    if (i + rows_ahead < count)
      for (int r = 0; r < alike; ++r) prefetch_row<vectors, 1>(target + (int64_t{own.row[rows_ahead]} + r) * stride);
    if (i + values_ahead < count)
      for (int r = 0; r < alike; ++r) {
        const T* const next = values + own.start[values_ahead * alike + r];
        __builtin_prefetch(next);
        __builtin_prefetch(next + own.length[values_ahead]);
      }
    run.place = own.place;
    run.length = *own.length;
#pragma GCC unroll 4
    for (int r = 0; r < alike; ++r) {
      run.values[r] = values + own.start[r];
      run.to[r] = target + (int64_t{*own.row} + r) * stride;
      run.start[r] = first && bias ? bias[*own.row + r] : T(0);
    }
    multiply_vectors<T, alike, vectors>(run, first);
    own = {own.row + 1, own.length + 1, own.start + alike, own.place + run.length};
  }
  runs = own;
}

template <class T, class Place, int vectors = TILE_VECTORS>
void multiply(RunCursor<Place>& runs, int64_t count, const Steps<Place>& steps, bool first, const T* values, const T* bias, const T* source, T* target) {
  if constexpr (vectors > 1) {
    if (steps.vectors < vectors) return multiply<T, Place, vectors - 1>(runs, count, steps, first, values, bias, source, target);
  }
  if (steps.alike == 4) multiply_runs<T, 4, vectors>(runs, count, steps, first, values, bias, source, target);
  else if (steps.alike == 2) multiply_runs<T, 2, vectors>(runs, count, steps, first, values, bias, source, target);
  else multiply_runs<T, 1, vectors>(runs, count, steps, first, values, bias, source, target);
}

// The lanes of a sum that wait to be added up: vectors of 64 bytes are folded to half before.
constexpr int waiting_bytes = VECTOR_BYTES < 32 ? VECTOR_BYTES : 32;
template <class T>
inline constexpr int waiting_lanes = waiting_bytes / static_cast<int>(sizeof(T));
template <class T>
struct WaitingVectors {
  typedef T type __attribute__((vector_size(waiting_bytes)));
};
template <class T>
using Waiting = typename WaitingVectors<T>::type;
template <class T>
struct WaitingInMemory {
  typedef T type __attribute__((vector_size(waiting_bytes), aligned(alignof(T)), may_alias));
};

template <class T, int... lane>
inline __attribute__((always_inline)) Waiting<T> folded(Vector<T> sum, Lanes<lane...>) {
  if constexpr (waiting_lanes<T> == lanes<T>) return sum;
  else return __builtin_shufflevector(sum, sum, lane...) + __builtin_shufflevector(sum, sum, (lane + waiting_lanes<T>)...);
}

// As many vectors as they have lanes, to their sums.
template <class T, int run = 1>
inline __attribute__((always_inline)) Waiting<T> sums_of(Waiting<T>* s) {
  constexpr int n = waiting_lanes<T>;
  using All = typename CountTo<n>::type;
  if constexpr (run < n) {
#pragma GCC unroll 8
    for (int i = 0; i < n / run / 2; ++i) s[i] = interleaved<run, 0>(s[2 * i], s[2 * i + 1], All{}) + interleaved<run, 1>(s[2 * i], s[2 * i + 1], All{});
    return sums_of<T, run * 2>(s);
  } else {
    return s[0];
  }
}

// Sums of `count` (of `together` that wait), behind one another.
template <class T>
inline __attribute__((always_inline)) void add_up(const T* waiting, int64_t count, bool first, T* to) {
  using Memory = typename WaitingInMemory<T>::type;
  constexpr int n = waiting_lanes<T>;
  Waiting<T> s[n];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) s[i] = *reinterpret_cast<const Memory*>(waiting + i * n);
  Waiting<T> sums = sums_of<T>(s);
  if (count == n) {
    if (!first) sums += *reinterpret_cast<const Memory*>(to);
    *reinterpret_cast<Memory*>(to) = sums;
  } else {
    for (int i = 0; i < count; ++i) to[i] = first ? sums[i] : to[i] + sums[i];
  }
}

// The products of a connection wait as one vector until there are as many as it has lanes, of whatever runs: no sum is taken across one vector.
template <class T, int alike, int vectors, class Place>
T* correlate_runs(RunCursor<Place>& runs, int64_t count, const Steps<Place>& steps, bool first, const T* source, const T* dtarget, T* dvalues) {
  using Memory = typename WaitingInMemory<T>::type;
  using All = typename CountTo<waiting_lanes<T>>::type;
  constexpr int n = lanes<T>, together = waiting_lanes<T>;
  constexpr int shared = alike * vectors <= ACCUMULATORS ? alike : 1;  // rows whose dtarget is held in registers, so that a source is loaded once
  alignas(64) T waiting[(part_of_run * shared + together) * together];
  const int64_t unit = unit_of<vectors * n>(steps), stride = steps.stride;
  int64_t filled = 0;
  RunCursor<Place> own = runs;
  for (int64_t i = 0; i < count; ++i) {
    if (i + rows_ahead < count)
      for (int r = 0; r < alike; ++r) prefetch_row<vectors, 0>(dtarget + (int64_t{own.row[rows_ahead]} + r) * stride);
    const int64_t length = *own.length;
    for (int64_t part = 0; part < length; part += part_of_run) {
      const int64_t connections = length - part < part_of_run ? length - part : part_of_run;
      const Place* const place = own.place + part;
      for (int row = 0; row < alike; row += shared) {
        const T* const d = dtarget + (int64_t{*own.row} + row) * stride;
        Vector<T> dy[shared][vectors];
#pragma GCC unroll 4
        for (int r = 0; r < shared; ++r)
#pragma GCC unroll 16
          for (int v = 0; v < vectors; ++v) dy[r][v] = load<T>(d + r * stride + v * n);
        T* to = waiting + filled * together;
        for (int64_t p = 0; p < connections; ++p, to += together) {
          const T* const from = source + int64_t{place[p]} * unit;
          Vector<T> sum[shared];
#pragma GCC unroll 16
          for (int v = 0; v < vectors; ++v) {
            const Vector<T> x = shared == 1 ? load<T>(from + v * n) : loaded_once<T>(from + v * n);
#pragma GCC unroll 4
            for (int r = 0; r < shared; ++r) sum[r] = v ? sum[r] + dy[r][v] * x : dy[r][v] * x;
          }
#pragma GCC unroll 4
          for (int r = 0; r < shared; ++r) *reinterpret_cast<Memory*>(to + r * connections * together) = folded<T>(sum[r], All{});
        }
        filled += shared * connections;
        int64_t done = 0;
        for (; done + together <= filled; done += together, dvalues += together) add_up<T>(waiting + done * together, together, first, dvalues);
        filled -= done;
        for (int64_t rest = 0; rest < filled; ++rest)
          *reinterpret_cast<Memory*>(waiting + rest * together) = *reinterpret_cast<const Memory*>(waiting + (done + rest) * together);
      }
    }
    own = {own.row + 1, own.length + 1, own.start + alike, own.place + length};
  }
  if (filled) {
    for (int64_t rest = filled; rest < together; ++rest) *reinterpret_cast<Memory*>(waiting + rest * together) = Waiting<T>{};
    add_up<T>(waiting, filled, first, dvalues);
  }
  runs = own;
  return dvalues + filled;
}

template <class T, class Place, int vectors = TILE_VECTORS>
T* correlate(RunCursor<Place>& runs, int64_t count, const Steps<Place>& steps, bool first, const T* source, const T* dtarget, T* dvalues) {
  if constexpr (vectors > 1) {
    if (steps.vectors < vectors) return correlate<T, Place, vectors - 1>(runs, count, steps, first, source, dtarget, dvalues);
  }
  if (steps.alike == 4) return correlate_runs<T, 4, vectors>(runs, count, steps, first, source, dtarget, dvalues);
  if (steps.alike == 2) return correlate_runs<T, 2, vectors>(runs, count, steps, first, source, dtarget, dvalues);
  return correlate_runs<T, 1, vectors>(runs, count, steps, first, source, dtarget, dvalues);
}

}  // namespace

template <class T, class Place>
struct RunTable {
  static constexpr RunKernels<T, Place> table = {TILE_VECTORS, multiply<T, Place>, correlate<T, Place>};
};

}  // namespace truesparse::ISA
