// Where are the large entries? Most vectors hold none, so only "any?" must be fast.
template <class T>
int64_t scan(const T* entries, int64_t size, T threshold, int32_t* found) {
  constexpr int n = lanes<T>, several = 4;
  typedef long long Words __attribute__((vector_size(VECTOR_BYTES)));
  const Vector<T> limit = broadcast<T>(threshold);
  const auto is_large = [&](int64_t i) {
    const Vector<T> x = load<T>(entries + i);
    return (x >= limit) | (-x >= limit);
  };
  const auto any = [](auto large) {
    const Words words = reinterpret_cast<Words>(large);
    long long joined = 0;
    for (int j = 0; j < VECTOR_BYTES / 8; ++j) joined |= words[j];
    return joined != 0;
  };
  int64_t count = 0, i = 0;
  const auto look_at = [&](int64_t end) {
    for (; i < end; ++i) {
      found[count] = static_cast<int32_t>(i);  // and overwritten by the next, unless large
      count += (entries[i] >= threshold) | (-entries[i] >= threshold);
    }
  };
  while (i + several * n <= size) {
    auto large = is_large(i);
    for (int v = 1; v < several; ++v) large |= is_large(i + v * n);
    if (!any(large)) {
      i += several * n;
      continue;
    }
    for (int v = 0; v < several; ++v)
      if (any(is_large(i))) look_at(i + n);
      else i += n;
  }
  look_at(size);
  return count;
}
