// Between the user's sample-major tensors and packed, feature-major ones: transposes in registers.

// Transposes lanes x lanes: doubling the run of lanes that is exchanged, log2(lanes) rounds.
template <class T, int run>
inline __attribute__((always_inline)) void transpose(Vector<T>* row) {
  constexpr int n = lanes<T>;
  if constexpr (run < n) {
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) {
      if (i & run) continue;
      const Vector<T> a = row[i], b = row[i + run];
      row[i] = interleave<run, 0>(a, b, T{});
      row[i + run] = interleave<run, 1>(a, b, T{});
    }
    transpose<T, run * 2>(row);
  }
}

template <class T>
inline __attribute__((always_inline)) T* placed(const Packing& packing, T* packed, int64_t feature) {
  return packed + (packing.place ? packing.place[feature] : feature) * packing.width;
}

// The last features that do not fill a vector are done again together with some before them: the same values go to the same places.
template <class T, class S>
void pack(const Packing& packing, const S* plain, T* packed) {
  constexpr int n = lanes<T>, each = per_lane<T, S>, together = n * each;
  if (packing.width < n || packing.features < together) {
    for (int64_t i = 0; i < packing.features; ++i) {
      T* to = placed(packing, packed, i);
      for (int64_t s = 0; s < packing.width; ++s) to[s] = s < packing.samples ? widened(plain[s * packing.sample_stride + i]) : T(0);
    }
    return;
  }
  // Vectors of samples outside: `lanes` streams at a time are as many as the processor fetches ahead.
  for (int64_t s = 0; s < packing.width; s += n) {
    const bool full = s + n <= packing.samples;
    for (int64_t start = 0; start < packing.features; start += together) {
      const int64_t i = start + together <= packing.features ? start : packing.features - together;
      const S* from = plain + s * packing.sample_stride + i;
      Vector<T> rows[n];
      if (full) {
#pragma GCC unroll 16
        for (int j = 0; j < n; ++j) rows[j] = load<T>(from + j * packing.sample_stride);
      } else {
#pragma GCC unroll 16
        for (int j = 0; j < n; ++j) rows[j] = s + j < packing.samples ? load<T>(from + j * packing.sample_stride) : Vector<T>{};
      }
      transpose<T, 1>(rows);
#pragma GCC unroll 16
      for (int j = 0; j < n; ++j) {
        store<T>(placed(packing, packed, i + j * each) + s, widened<T, S, 0>(rows[j]));
        if constexpr (each == 2) store<T>(placed(packing, packed, i + j * each + 1) + s, widened<T, S, 1>(rows[j]));
      }
    }
  }
}

template <class T, class S>
void unpack(const Packing& packing, const T* packed, S* plain) {
  constexpr int n = lanes<T>, each = per_lane<T, S>, together = n * each;
  if (packing.width < n || packing.features < together) {
    for (int64_t s = 0; s < packing.samples; ++s)
      for (int64_t i = 0; i < packing.features; ++i) put(placed(packing, packed, i)[s], plain + s * packing.sample_stride + i);
    return;
  }
  for (int64_t s = 0; s < packing.samples; s += n) {
    const bool full = s + n <= packing.samples;
    for (int64_t start = 0; start < packing.features; start += together) {
      const int64_t i = start + together <= packing.features ? start : packing.features - together;
      S* to = plain + s * packing.sample_stride + i;
      Vector<T> rows[n];
#pragma GCC unroll 16
      for (int j = 0; j < n; ++j) {
        const T* const last = placed(packing, packed, i + j * each + each - 1) + s;
        rows[j] = narrowed<T, S>(load<T>(placed(packing, packed, i + j * each) + s), load<T>(last));
      }
      transpose<T, 1>(rows);
      if (full) {
#pragma GCC unroll 16
        for (int j = 0; j < n; ++j) store<T>(to + j * packing.sample_stride, rows[j]);
      } else {
#pragma GCC unroll 16
        for (int j = 0; j < n; ++j)
          if (s + j < packing.samples) store<T>(to + j * packing.sample_stride, rows[j]);
      }
    }
  }
}
