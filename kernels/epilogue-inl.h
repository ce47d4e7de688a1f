// The kernel of one instruction set: no include guard, because foreach_isa.h includes this once per target.
namespace truesparse::ISA {
namespace {

#include "vector-inl.h"

// erf(x / sqrt(2)) = x P(x^2) / Q(x^2), fitted for the least largest error, 2e-8, up to `last`; from there on it is 1 in float32.
constexpr float last = 5.6f;
constexpr float p[] = {0.797884448f, 0.0687137495f, 0.00941162143f, 0.000347228223f, 1.27025932e-5f, 4.42775214e-8f};
constexpr float q[] = {1.0f, 0.252785662f, 0.0289283733f, 0.00191167426f, 7.50064409e-5f, 1.17962558e-6f};

template <class V>
inline __attribute__((always_inline)) V limited(V x, V low, V high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

inline __attribute__((always_inline)) Vector<float> polynomial(const float* factors, Vector<float> t) {
  Vector<float> sum = broadcast<float>(factors[5]);
#pragma GCC unroll 5
  for (int i = 4; i >= 0; --i) sum = sum * t + factors[i];
  return sum;
}

inline __attribute__((always_inline)) Vector<float> gelu_of(Vector<float> x) {
  const Vector<float> one = broadcast<float>(1.0f), end = broadcast<float>(last), near = limited(x, -end, end), t = near * near;
  return 0.5f * x * (one + limited(near * polynomial(p, t) / polynomial(q, t), -one, one));
}

template <bool gelu, bool adds>
void finish(const Epilogue& epilogue, const float* added, int64_t count, float* y) {
  constexpr int n = lanes<float>;
  const Vector<float> low = broadcast<float>(epilogue.low), high = broadcast<float>(epilogue.high);
  const auto finished = [&](Vector<float> sum) __attribute__((always_inline)) { return limited(gelu ? gelu_of(sum) : sum, low, high); };
  int64_t i = 0;
  for (; i + n <= count; i += n) {
    Vector<float> sum = load<float>(y + i);
    if constexpr (adds) sum += load<float>(added + i);
    store<float>(y + i, finished(sum));
  }
  if (i == count) return;
  float rest[n] = {};
  for (int64_t j = i; j < count; ++j) rest[j - i] = adds ? y[j] + added[j] : y[j];
  store<float>(rest, finished(load<float>(rest)));
  for (int64_t j = i; j < count; ++j) y[j] = rest[j - i];
}

void finish(const Epilogue& epilogue, const float* added, int64_t count, float* y) {
  if (epilogue.gelu) added ? finish<true, true>(epilogue, added, count, y) : finish<true, false>(epilogue, added, count, y);
  else added ? finish<false, true>(epilogue, added, count, y) : finish<false, false>(epilogue, added, count, y);
}

}  // namespace

struct EpilogueTable {
  static constexpr EpilogueKernel kernel = finish;
};

}  // namespace truesparse::ISA
