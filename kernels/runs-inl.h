// The kernels of one instruction set: no include guard, because foreach_isa.h includes this once per target.
namespace truesparse::ISA {
namespace {

#include "vector-inl.h"

// 256 bytes of a feature: a block of columns then has as many as a run needs to be long.
constexpr int widest_tile = 256 / VECTOR_BYTES < TILE_VECTORS ? 256 / VECTOR_BYTES : TILE_VECTORS;

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

// Rows are anywhere: what the next runs add to, or multiply with, is asked for.
template <class T, int vectors, int write>
inline __attribute__((always_inline)) void prefetch_row(const T* tile, int32_t row) {
  const char* const from = reinterpret_cast<const char*>(tile + static_cast<int64_t>(row) * vectors * lanes<T>);
  for (int64_t line = 0; line < vectors * VECTOR_BYTES; line += 64) __builtin_prefetch(from + line, write);
}

constexpr int64_t rows_ahead = 4, values_ahead = 10;  // runs

// `some` of the `vectors` of a tile, which both `source` and `to` begin with.
template <class T, int alike, int some, int vectors>
inline __attribute__((always_inline)) void multiply_run(const uint16_t* place, int64_t length, const T* const* values, const T* source, T* const* to) {
  constexpr int n = lanes<T>;
  Vector<T> sum[alike][some];
#pragma GCC unroll 4
  for (int r = 0; r < alike; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < some; ++v) sum[r][v] = load<T>(to[r] + v * n);
  for (int64_t p = 0; p < length; ++p) {
    const T* const from = source + int64_t{place[p]} * (vectors * n);
    if constexpr (alike == 1) {
      const Vector<T> value = broadcast<T>(values[0][p]);
#pragma GCC unroll 16
      for (int v = 0; v < some; ++v) sum[0][v] += value * load<T>(from + v * n);
    } else {
      Vector<T> x[some];
#pragma GCC unroll 16
      for (int v = 0; v < some; ++v) x[v] = loaded_once<T>(from + v * n);
#pragma GCC unroll 4
      for (int r = 0; r < alike; ++r) {
        const Vector<T> value = broadcast<T>(values[r][p]);
#pragma GCC unroll 16
        for (int v = 0; v < some; ++v) sum[r][v] += value * x[v];
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < alike; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < some; ++v) store<T>(to[r] + v * n, sum[r][v]);
}

// As many vectors at a time as there are registers for.
template <class T, int alike, int some, int vectors>
inline __attribute__((always_inline)) void multiply_vectors(const uint16_t* place, int64_t length, const T* const* values, const T* source, T* const* to) {
  if constexpr (alike > 1 && alike * some > ACCUMULATORS) {
    constexpr int half = (some + 1) / 2;
    multiply_vectors<T, alike, half, vectors>(place, length, values, source, to);
    T* rest[alike];
    for (int r = 0; r < alike; ++r) rest[r] = to[r] + half * lanes<T>;
    multiply_vectors<T, alike, some - half, vectors>(place, length, values, source + half * lanes<T>, rest);
  } else {
    multiply_run<T, alike, some, vectors>(place, length, values, source, to);
  }
}

template <class T, int alike, int vectors>
void multiply_runs(RunCursor& runs, int64_t count, const T* values, const T* source, T* target) {
  RunCursor own = runs;
  for (int64_t run = 0; run < count; ++run) {
    if (run + rows_ahead < count)
      for (int r = 0; r < alike; ++r) prefetch_row<T, vectors, 1>(target, own.row[rows_ahead] + r);
    if (run + values_ahead < count)
      for (int r = 0; r < alike; ++r) {
        const T* const next = values + own.start[values_ahead * alike + r];
        __builtin_prefetch(next);
        __builtin_prefetch(next + own.length[values_ahead] - 1);
      }
    const int64_t length = *own.length;
    const T* from[alike];
    T* to[alike];
#pragma GCC unroll 4
    for (int r = 0; r < alike; ++r) {
      from[r] = values + own.start[r];
      to[r] = target + (int64_t{*own.row} + r) * (vectors * lanes<T>);
    }
    multiply_vectors<T, alike, vectors, vectors>(own.place, length, from, source, to);
    own = {own.row + 1, own.length + 1, own.start + alike, own.place + length};
  }
  runs = own;
}

template <class T, int vectors = widest_tile>
void multiply(RunCursor& runs, int64_t count, int64_t alike, int64_t wanted, const T* values, const T* source, T* target) {
  if constexpr (vectors > 1) {
    if (wanted < vectors) return multiply<T, vectors - 1>(runs, count, alike, wanted, values, source, target);
  }
  if (alike == 4) multiply_runs<T, 4, vectors>(runs, count, values, source, target);
  else if (alike == 2) multiply_runs<T, 2, vectors>(runs, count, values, source, target);
  else multiply_runs<T, 1, vectors>(runs, count, values, source, target);
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

template <class T, int run, int odd, int... lane>
inline __attribute__((always_inline)) Waiting<T> every_other(Waiting<T> a, Waiting<T> b, Lanes<lane...>) {
  constexpr int n = waiting_lanes<T>;
  return __builtin_shufflevector(a, b, ((lane / run) % 2 == 0 ? lane + odd * run : n + lane - run + odd * run)...);
}

// As many vectors as they have lanes, to their sums.
template <class T, int run = 1>
inline __attribute__((always_inline)) Waiting<T> sums_of(Waiting<T>* s) {
  constexpr int n = waiting_lanes<T>;
  using All = typename CountTo<n>::type;
  if constexpr (run < n) {
#pragma GCC unroll 8
    for (int i = 0; i < n / run / 2; ++i) s[i] = every_other<T, run, 0>(s[2 * i], s[2 * i + 1], All{}) + every_other<T, run, 1>(s[2 * i], s[2 * i + 1], All{});
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
template <class T, int alike, int vectors>
T* correlate_runs(RunCursor& runs, int64_t count, bool first, const T* source, const T* dtarget, T* dvalues) {
  using Memory = typename WaitingInMemory<T>::type;
  using All = typename CountTo<waiting_lanes<T>>::type;
  constexpr int n = lanes<T>, together = waiting_lanes<T>;
  constexpr int shared = alike * vectors <= ACCUMULATORS ? alike : 1;  // rows whose dtarget is held in registers, so that a source is loaded once
  alignas(64) T waiting[(longest_run * shared + together) * together];
  int64_t filled = 0;
  RunCursor own = runs;
  for (int64_t run = 0; run < count; ++run) {
    if (run + rows_ahead < count)
      for (int r = 0; r < alike; ++r) prefetch_row<T, vectors, 0>(dtarget, own.row[rows_ahead] + r);
    const int64_t length = *own.length;
    for (int row = 0; row < alike; row += shared) {
      const T* const d = dtarget + (int64_t{*own.row} + row) * (vectors * n);
      Vector<T> dy[shared][vectors];
#pragma GCC unroll 4
      for (int r = 0; r < shared; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) dy[r][v] = load<T>(d + (r * vectors + v) * n);
      T* to = waiting + filled * together;
      for (int64_t p = 0; p < length; ++p, to += together) {
        const T* const from = source + int64_t{own.place[p]} * (vectors * n);
        Vector<T> sum[shared];
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) {
          const Vector<T> x = shared == 1 ? load<T>(from + v * n) : loaded_once<T>(from + v * n);
#pragma GCC unroll 4
          for (int r = 0; r < shared; ++r) sum[r] = v ? sum[r] + dy[r][v] * x : dy[r][v] * x;
        }
#pragma GCC unroll 4
        for (int r = 0; r < shared; ++r) *reinterpret_cast<Memory*>(to + r * length * together) = folded<T>(sum[r], All{});
      }
      filled += shared * length;
      int64_t done = 0;
      for (; done + together <= filled; done += together, dvalues += together) add_up<T>(waiting + done * together, together, first, dvalues);
      filled -= done;
      for (int64_t i = 0; i < filled; ++i) *reinterpret_cast<Memory*>(waiting + i * together) = *reinterpret_cast<const Memory*>(waiting + (done + i) * together);
    }
    own = {own.row + 1, own.length + 1, own.start + alike, own.place + length};
  }
  if (filled) {
    for (int64_t i = filled; i < together; ++i) *reinterpret_cast<Memory*>(waiting + i * together) = Waiting<T>{};
    add_up<T>(waiting, filled, first, dvalues);
  }
  runs = own;
  return dvalues + filled;
}

template <class T, int vectors = widest_tile>
T* correlate(RunCursor& runs, int64_t count, int64_t alike, int64_t wanted, bool first, const T* source, const T* dtarget, T* dvalues) {
  if constexpr (vectors > 1) {
    if (wanted < vectors) return correlate<T, vectors - 1>(runs, count, alike, wanted, first, source, dtarget, dvalues);
  }
  if (alike == 4) return correlate_runs<T, 4, vectors>(runs, count, first, source, dtarget, dvalues);
  if (alike == 2) return correlate_runs<T, 2, vectors>(runs, count, first, source, dtarget, dvalues);
  return correlate_runs<T, 1, vectors>(runs, count, first, source, dtarget, dvalues);
}

}  // namespace

template <class T>
struct RunTable {
  static constexpr RunKernels<T> table = {widest_tile, multiply<T>, correlate<T>};
};

}  // namespace truesparse::ISA
