// dvalue += dtarget[row][tile] . source[offset + tile], several connections at a time so that no sum is taken across one vector.

// `count` (a power of two up to the lanes) vectors to their `count` sums, in the first lanes of the result.
template <class T, int count, int run>
inline __attribute__((always_inline)) Vector<T> sums_of(Vector<T>* s) {
  if constexpr (run < count) {
#pragma GCC unroll 16
    for (int i = 0; i < count / run / 2; ++i) s[i] = interleave<run, 0>(s[2 * i], s[2 * i + 1], T{}) + interleave<run, 1>(s[2 * i], s[2 * i + 1], T{});
    return sums_of<T, count, run * 2>(s);
  } else if constexpr (run < lanes<T>) {
    s[0] += interleave<run, 1>(s[0], s[0], T{});
    // Folding run by run leaves sums in every other run; the last fold must meet the first half.
    return sums_of<T, count, run * 2>(s);
  } else {
    return s[0];
  }
}

// Connections p to p + min(count, left) of `rows` rows that have the same offsets.
template <class T, int rows, int vectors, int count>
inline __attribute__((always_inline)) void sddmm_group(const Connections<T>& c, int64_t row, int64_t p, int64_t left, bool first, const T* source,
                                                       const T* dtarget, int64_t stride, T* dvalues) {
  constexpr int n = lanes<T>;
  const int32_t* const offsets = c.offsets + c.begins[row] + p;
  const T* const d = dtarget + row * stride;
  const T* from[count];
#pragma GCC unroll 16
  for (int q = 0; q < count; ++q) from[q] = source + offsets[q < left ? q : 0] * c.step;
  Vector<T> s[rows][count];
#pragma GCC unroll 16
  for (int v = 0; v < vectors; ++v) {
    Vector<T> dv[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) dv[r] = load<T>(d + r * stride + v * n);
#pragma GCC unroll 16
    for (int q = 0; q < count; ++q) {
      const Vector<T> x = load<T>(from[q] + v * n);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) s[r][q] = v ? s[r][q] + dv[r] * x : dv[r] * x;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    alignas(64) T sums[n];
    store<T>(sums, sums_of<T, count, 1>(s[r]));
    T* to = dvalues + c.begins[row + r] + p;
#pragma GCC unroll 16
    for (int q = 0; q < count; ++q)
      if (q < left) to[q] = first ? sums[q] : to[q] + sums[q];
  }
}

template <class T, int rows, int vectors>
inline __attribute__((always_inline)) void sddmm_rows(const Connections<T>& c, int64_t row, bool first, const T* source, const T* dtarget,
                                                      int64_t stride, T* dvalues) {
  constexpr int most = rows == 1 ? 8 : ACCUMULATORS / rows, many = lanes<T> < most ? lanes<T> : most, few = rows == 1 ? many / 2 : many;
  const int64_t count = c.ends[row] - c.begins[row];
  int64_t p = 0;
  for (; p + few < count; p += many) sddmm_group<T, rows, vectors, many>(c, row, p, count - p, first, source, dtarget, stride, dvalues);
  if (p < count) sddmm_group<T, rows, vectors, few>(c, row, p, count - p, first, source, dtarget, stride, dvalues);
}

template <class T, int vectors, int rows>
void sddmm_tile(const Connections<T>& c, bool first, const T* source, const T* dtarget, int64_t stride, T* dvalues) {
  for (int64_t row = c.row_begin; row < c.row_end;) {
    prefetch(c, row);
    if (rows > 1 && (row % rows || row + rows > c.row_end)) {
      sddmm_rows<T, 1, vectors>(c, row++, first, source, dtarget, stride, dvalues);
    } else {
      sddmm_rows<T, rows, vectors>(c, row, first, source, dtarget, stride, dvalues);
      row += rows;
    }
  }
}

template <class T, int vectors = TILE_VECTORS>
void sddmm(const Connections<T>& c, int64_t wanted, bool first, const T* source, const T* dtarget, int64_t stride, T* dvalues) {
  if constexpr (vectors > 1) {
    if (wanted < vectors) return sddmm<T, vectors - 1>(c, wanted, first, source, dtarget, stride, dvalues);
  }
  if (c.alike == 4) sddmm_tile<T, vectors, 4>(c, first, source, dtarget, stride, dvalues);
  else if (c.alike == 2) sddmm_tile<T, vectors, 2>(c, first, source, dtarget, stride, dvalues);
  else sddmm_tile<T, vectors, 1>(c, first, source, dtarget, stride, dvalues);
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
