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
template <class T>
void pack(const Packing& packing, const T* plain, T* packed) {
  constexpr int n = lanes<T>;
  if (packing.width < n || packing.features < n) {
    for (int64_t i = 0; i < packing.features; ++i) {
      T* to = placed(packing, packed, i);
      for (int64_t s = 0; s < packing.width; ++s) to[s] = s < packing.samples ? plain[s * packing.sample_stride + i] : T(0);
    }
    return;
  }
  // Vectors of samples outside: `lanes` streams at a time are as many as the processor fetches ahead.
  for (int64_t s = 0; s < packing.width; s += n) {
    const bool full = s + n <= packing.samples;
    for (int64_t start = 0; start < packing.features; start += n) {
      const int64_t i = start + n <= packing.features ? start : packing.features - n;
      const T* from = plain + s * packing.sample_stride + i;
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
      for (int j = 0; j < n; ++j) store<T>(placed(packing, packed, i + j) + s, rows[j]);
    }
  }
}

template <class T>
void unpack(const Packing& packing, const T* packed, T* plain) {
  constexpr int n = lanes<T>;
  if (packing.width < n || packing.features < n) {
    for (int64_t s = 0; s < packing.samples; ++s)
      for (int64_t i = 0; i < packing.features; ++i) plain[s * packing.sample_stride + i] = placed(packing, packed, i)[s];
    return;
  }
  for (int64_t s = 0; s < packing.samples; s += n) {
    const bool full = s + n <= packing.samples;
    for (int64_t start = 0; start < packing.features; start += n) {
      const int64_t i = start + n <= packing.features ? start : packing.features - n;
      T* to = plain + s * packing.sample_stride + i;
      Vector<T> rows[n];
#pragma GCC unroll 16
      for (int j = 0; j < n; ++j) rows[j] = load<T>(placed(packing, packed, i + j) + s);
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
