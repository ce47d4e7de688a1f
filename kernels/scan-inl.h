// Where is the next large entry? Most vectors hold none, so only "any?" must be fast.
template <class T>
int64_t scan(const T* row, int64_t from, int64_t size, T threshold) {
  constexpr int n = lanes<T>, several = 4;
  const Vector<T> limit = broadcast<T>(threshold);
  int64_t i = from;
  for (; i + several * n <= size; i += several * n) {
    decltype(limit >= limit) any = {};
    for (int v = 0; v < several; ++v) {
      const Vector<T> x = load<T>(row + i + v * n);
      any |= (x >= limit) | (-x >= limit);
    }
    long long found = 0;
    typedef long long Words __attribute__((vector_size(VECTOR_BYTES)));
    const Words words = reinterpret_cast<Words>(any);
    for (int j = 0; j < VECTOR_BYTES / 8; ++j) found |= words[j];
    if (found) break;
  }
  for (; i < size; ++i)
    if (row[i] >= threshold || -row[i] >= threshold) return i;
  return size;
}
