// target[row][tile] += value * source[offset + tile]: one broadcast and `vectors` multiply-adds per connection.

// The connections of one block are short runs, far apart in the values: the processor does not see them coming.
template <class T>
inline __attribute__((always_inline)) void prefetch(const Connections<T>& c, int64_t row) {
  constexpr int64_t ahead = 8;
  const int64_t next = row + ahead < c.row_end ? row + ahead : c.row_end - 1;
  const int32_t begin = c.begins[next], end = c.ends[next];
  __builtin_prefetch(c.offsets + begin);
  __builtin_prefetch(c.offsets + end);
  if (c.values) {
    __builtin_prefetch(c.values + begin);
    __builtin_prefetch(c.values + end);
  }
}

template <class T, int vectors>
void spmm_tile(const Connections<T>& c, bool first, const T* bias, const T* source, T* target, int64_t stride) {
  constexpr int n = lanes<T>;
  const int32_t* const offsets = c.offsets;
  const T* const values = c.values;
  const int64_t step = c.step;
  for (int64_t row = c.row_begin; row < c.row_end; ++row) {
    T* to = target + row * stride;
    prefetch(c, row);
    Vector<T> sum[vectors];
    if (first) {
      const Vector<T> start = broadcast<T>(bias ? bias[row] : T(0));
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sum[v] = start;
    } else {
      if (c.begins[row] == c.ends[row]) continue;
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sum[v] = load<T>(to + v * n);
    }
    const int64_t end = c.ends[row];
    for (int64_t p = c.begins[row]; p < end; ++p) {
      const T* from = source + offsets[p] * step;
      const Vector<T> value = broadcast<T>(values[p]);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sum[v] += value * load<T>(from + v * n);
    }
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) store<T>(to + v * n, sum[v]);
  }
}

template <class T, int vectors = TILE_VECTORS>
void spmm(const Connections<T>& c, int64_t wanted, bool first, const T* bias, const T* source, T* target, int64_t stride) {
  if constexpr (vectors > 1) {
    if (wanted < vectors) return spmm<T, vectors - 1>(c, wanted, first, bias, source, target, stride);
  }
  spmm_tile<T, vectors>(c, first, bias, source, target, stride);
}

// Two vectors of sums hide the latency of the multiply-add; their order is fixed.
template <class T>
void spmv(const Connections<T>& c, const T* bias, const T* x, T* y) {
  constexpr int n = lanes<T>;
  for (int64_t row = c.row_begin; row < c.row_end; ++row) {
    int64_t p = c.begins[row];
    const int64_t end = c.ends[row];
    Vector<T> even = {}, odd = {};
    for (; p + 2 * n <= end; p += 2 * n) {
      even += load<T>(c.values + p) * gathered<T>(x, c.offsets + p);
      odd += load<T>(c.values + p + n) * gathered<T>(x, c.offsets + p + n);
    }
    T sum = bias ? bias[row] : T(0);
    for (; p < end; ++p) sum += c.values[p] * x[c.offsets[p]];
    even += odd;
    for (int i = 0; i < n; ++i) sum += even[i];
    y[row] = sum;
  }
}

template <class T>
void gather(const T* x, const int32_t* at, int64_t count, T* to) {
  constexpr int n = lanes<T>;
  int64_t i = 0;
  for (; i + n <= count; i += n) store<T>(to + i, gathered<T>(x, at + i));
  for (; i < count; ++i) to[i] = x[at[i]];
}
