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

// Connections p to p + min(count, left).
template <class T, int vectors, int count>
inline __attribute__((always_inline)) void sddmm_group(const Connections<T>& c, int64_t p, int64_t left, bool first, const T* source,
                                                       const T* dtarget, T* dvalues) {
  constexpr int n = lanes<T>;
  const T* from[count];
#pragma GCC unroll 16
  for (int q = 0; q < count; ++q) from[q] = source + c.offsets[q < left ? p + q : p] * c.step;
  Vector<T> s[count];
  const Vector<T> d0 = load<T>(dtarget);
#pragma GCC unroll 16
  for (int q = 0; q < count; ++q) s[q] = d0 * load<T>(from[q]);
#pragma GCC unroll 16
  for (int v = 1; v < vectors; ++v) {
    const Vector<T> d = load<T>(dtarget + v * n);
#pragma GCC unroll 16
    for (int q = 0; q < count; ++q) s[q] += d * load<T>(from[q] + v * n);
  }
  alignas(64) T sums[n];
  store<T>(sums, sums_of<T, count, 1>(s));
  T* to = dvalues + p;
  if (left >= count) {
#pragma GCC unroll 16
    for (int q = 0; q < count; ++q) to[q] = first ? sums[q] : to[q] + sums[q];
  } else {
    for (int q = 0; q < left; ++q) to[q] = first ? sums[q] : to[q] + sums[q];
  }
}

template <class T, int vectors>
void sddmm_tile(const Connections<T>& c, bool first, const T* source, const T* dtarget, int64_t stride, T* dvalues) {
  constexpr int many = lanes<T> < 8 ? lanes<T> : 8, few = many / 2;
  for (int64_t row = c.row_begin; row < c.row_end; ++row) {
    const T* d = dtarget + row * stride;
    const int64_t end = c.ends[row];
    prefetch(c, row);
    int64_t p = c.begins[row];
    for (; p + few < end; p += many) sddmm_group<T, vectors, many>(c, p, end - p, first, source, d, dvalues);
    if (p < end) sddmm_group<T, vectors, few>(c, p, end - p, first, source, d, dvalues);
  }
}

template <class T, int vectors = TILE_VECTORS>
void sddmm(const Connections<T>& c, int64_t wanted, bool first, const T* source, const T* dtarget, int64_t stride, T* dvalues) {
  if constexpr (vectors > 1) {
    if (wanted < vectors) return sddmm<T, vectors - 1>(c, wanted, first, source, dtarget, stride, dvalues);
  }
  sddmm_tile<T, vectors>(c, first, source, dtarget, stride, dvalues);
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
