// Images whose rows are in sequence: copied, every so many positions of them, or the largest of two by two.

// Two vectors side by side in memory -> the even lanes of both, or the odd ones.
template <class T, int odd, int... lane>
inline __attribute__((always_inline)) Vector<T> every_second(Vector<T> a, Vector<T> b, Lanes<lane...>) {
  return __builtin_shufflevector(a, b, (2 * lane + odd)...);
}

template <class T, class S>
void every(const S* from, int64_t count, int64_t step, T* to) {
  constexpr int n = lanes<T>;
  int64_t i = 0;
  if constexpr (per_lane<T, S> == 1) {
    // What is between the last ones may be the end of the memory.
    for (; step == 2 && i + n < count; i += n)
      store<T>(to + i, every_second<T, 0>(load<T>(from + 2 * i), load<T>(from + 2 * i + n), typename CountTo<n>::type{}));
  }
  for (; i < count; ++i) to[i] = widened(from[i * step]);
}

// Rows are often shorter than a vector: the first and the last few numbers may be the same.
template <class T, int some>
inline __attribute__((always_inline)) void copy_row(const T* from, int64_t count, T* to) {
  constexpr size_t bytes = some * sizeof(T);
  if constexpr (some == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
  } else if (count < some) {
    copy_row<T, some / 2>(from, count, to);
  } else {
    for (int64_t i = 0; i + some < count; i += some) __builtin_memcpy(to + i, from + i, bytes);
    __builtin_memcpy(to + count - some, from + count - some, bytes);
  }
}

template <class T>
void copy_rows(const T* from, int64_t from_pitch, int64_t rows, int64_t columns, T* to, int64_t to_pitch) {
  if (from_pitch == columns && to_pitch == columns) {
    columns *= rows;
    rows = 1;
  }
  for (int64_t row = 0; row < rows; ++row) copy_row<T, lanes<T>>(from + row * from_pitch, columns, to + row * to_pitch);
}

template <class T>
inline __attribute__((always_inline)) T* zeros(int64_t count, T* to) {
  constexpr int n = lanes<T>;
  int64_t i = 0;
  for (; i + n <= count; i += n) store<T>(to + i, Vector<T>{});
  for (; i < count; ++i) to[i] = T(0);
  return to + count;
}

template <class T>
void keep(const T* from, const T* kept, int64_t period, int64_t before, int64_t count, int64_t after, T* to) {
  constexpr int n = lanes<T>;
  to = zeros(before, to);
  int64_t i = 0;
  for (int64_t at = 0; i + n <= count; i += n) {
    store<T>(to + i, load<T>(kept + at) != T(0) ? load<T>(from + i) : Vector<T>{});
    at += n;
    if (at >= period) at = 0;
  }
  for (; i < count; ++i) to[i] = kept[i % period] != T(0) ? from[i] : T(0);
  zeros(after, to + count);
}

template <class V>
inline __attribute__((always_inline)) V larger(V a, V b) {
  return ((a > b) | (a != a)) ? a : b;
}

template <class T>
void pool(const T* from, int64_t pitch, int64_t count, int64_t width, T* to) {
  constexpr int n = lanes<T>;
  const auto of_rows = [&](const T* at) __attribute__((always_inline)) { return larger(load<T>(at), load<T>(at + pitch)); };
  if (width > 1) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t s = 0; s < width; s += n) store<T>(to + i * width + s, larger(of_rows(from + 2 * i * width + s), of_rows(from + (2 * i + 1) * width + s)));
    return;
  }
  int64_t i = 0;
  for (; i + n <= count; i += n) {
    const Vector<T> a = of_rows(from + 2 * i), b = of_rows(from + 2 * i + n);
    store<T>(to + i, larger(every_second<T, 0>(a, b, typename CountTo<n>::type{}), every_second<T, 1>(a, b, typename CountTo<n>::type{})));
  }
  for (; i < count; ++i) {
    const T* at = from + 2 * i;
    to[i] = larger(larger(at[0], at[1]), larger(at[pitch], at[pitch + 1]));
  }
}
