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

template <class T>
inline __attribute__((always_inline)) Vector<T> limited(const Connections<T>& c, Vector<T> sum) {
  if (!c.limits) return sum;
  const Vector<T> low = broadcast<T>(c.limits->low), high = broadcast<T>(c.limits->high);
  sum = sum < low ? low : sum;
  return sum > high ? high : sum;
}

// `rows` rows that have the same offsets: a source is loaded once for all of them.
template <class T, int rows, int vectors>
inline __attribute__((always_inline)) void spmm_rows(const Connections<T>& c, int64_t row, bool first, const T* bias, const T* source, T* target,
                                                     int64_t stride) {
  constexpr int n = lanes<T>;
  const int64_t count = c.ends[row] - c.begins[row], step = c.step;
  if (!first && !count && !c.limits) return;
  const int32_t* const offsets = c.offsets + c.begins[row];
  const T* values[rows];
  T* to[rows];
  Vector<T> sum[rows][vectors];
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    values[r] = c.values + c.begins[row + r];
    to[r] = target + (row + r) * stride;
    if (first) {
      const Vector<T> start = broadcast<T>(bias ? bias[row + r] : T(0));
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sum[r][v] = start;
    } else {
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sum[r][v] = load<T>(to[r] + v * n);
    }
  }
  for (int64_t p = 0; p < count; ++p) {
    const T* from = source + offsets[p] * step;
    if constexpr (rows == 1) {
      const Vector<T> value = broadcast<T>(values[0][p]);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sum[0][v] += value * load<T>(from + v * n);
    } else {
      Vector<T> x[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) x[v] = load<T>(from + v * n);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        const Vector<T> value = broadcast<T>(values[r][p]);
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) sum[r][v] += value * x[v];
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) store<T>(to[r] + v * n, limited(c, sum[r][v]));
  }
}

// As many vectors at a time as there are registers for.
template <class T, int rows, int vectors>
inline __attribute__((always_inline)) void spmm_group(const Connections<T>& c, int64_t row, bool first, const T* bias, const T* source, T* target,
                                                      int64_t stride) {
  if constexpr (rows > 1 && rows * vectors > ACCUMULATORS) {
    constexpr int half = (vectors + 1) / 2;
    spmm_group<T, rows, half>(c, row, first, bias, source, target, stride);
    spmm_group<T, rows, vectors - half>(c, row, first, bias, source + half * lanes<T>, target + half * lanes<T>, stride);
  } else {
    spmm_rows<T, rows, vectors>(c, row, first, bias, source, target, stride);
  }
}

constexpr int abreast = 4;

// A tile of one vector: one row is one chain of multiply-adds, each waiting for the one before, so several rows go abreast. With two
// vectors already, rows of uneven length cost what that gains.
template <class T>
inline __attribute__((always_inline)) void spmm_abreast(const Connections<T>& c, int64_t row, bool first, const T* bias, const T* source, T* target,
                                                        int64_t stride) {
  const int32_t* offsets[abreast];
  const T* values[abreast];
  int64_t count[abreast], common = INT64_MAX;
  Vector<T> sum[abreast];
#pragma GCC unroll 4
  for (int r = 0; r < abreast; ++r) {
    offsets[r] = c.offsets + c.begins[row + r];
    values[r] = c.values + c.begins[row + r];
    count[r] = c.ends[row + r] - c.begins[row + r];
    if (count[r] < common) common = count[r];
    sum[r] = first ? broadcast<T>(bias ? bias[row + r] : T(0)) : load<T>(target + (row + r) * stride);
  }
  const auto add = [&](int r, int64_t p)
                       __attribute__((always_inline)) { sum[r] += broadcast<T>(values[r][p]) * load<T>(source + offsets[r][p] * c.step); };
  for (int64_t p = 0; p < common; ++p) {
#pragma GCC unroll 4
    for (int r = 0; r < abreast; ++r) add(r, p);
  }
#pragma GCC unroll 4
  for (int r = 0; r < abreast; ++r) {
    for (int64_t p = common; p < count[r]; ++p) add(r, p);
    store<T>(target + (row + r) * stride, limited(c, sum[r]));
  }
}

template <class T, int vectors, int rows>
void spmm_tile(const Connections<T>& c, bool first, const T* bias, const T* source, T* target, int64_t stride) {
  for (int64_t row = c.row_begin; row < c.row_end;) {
    prefetch(c, row);
    if constexpr (rows == 1 && vectors == 1) {
      if (row + abreast <= c.row_end) {
        spmm_abreast<T>(c, row, first, bias, source, target, stride);
        row += abreast;
        continue;
      }
    }
    if (row % rows == 0 && row + rows <= c.row_end) {
      spmm_group<T, rows, vectors>(c, row, first, bias, source, target, stride);
      row += rows;
    } else {
      spmm_group<T, 1, vectors>(c, row++, first, bias, source, target, stride);
    }
  }
}

template <class T, int vectors = TILE_VECTORS>
void spmm(const Connections<T>& c, int64_t wanted, bool first, const T* bias, const T* source, T* target, int64_t stride) {
  if constexpr (vectors > 1) {
    if (wanted < vectors) return spmm<T, vectors - 1>(c, wanted, first, bias, source, target, stride);
  }
  if (c.alike == 4) spmm_tile<T, vectors, 4>(c, first, bias, source, target, stride);
  else if (c.alike == 2) spmm_tile<T, vectors, 2>(c, first, bias, source, target, stride);
  else spmm_tile<T, vectors, 1>(c, first, bias, source, target, stride);
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

template <class T>
void sum(int64_t row_begin, int64_t row_end, int64_t vectors, bool first, const T* dtarget, int64_t stride, T* sums) {
  constexpr int n = lanes<T>;
  for (int64_t row = row_begin; row < row_end; ++row) {
    Vector<T> total = {};
    for (int64_t v = 0; v < vectors; ++v) total += load<T>(dtarget + row * stride + v * n);
    T all = first ? T(0) : sums[row];
    for (int j = 0; j < n; ++j) all += total[j];
    sums[row] = all;
  }
}
