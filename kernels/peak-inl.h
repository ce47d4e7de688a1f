// Multiply-adds that wait for nothing: no include guard, because foreach_isa.h includes this once per target.
namespace truesparse::ISA {
namespace {

#include "vector-inl.h"

// Enough sums that do not wait for one another to keep two units of four cycles busy, few enough for 16 registers.
constexpr int sums_at_once = 12;

}  // namespace

struct Peak {
  static constexpr int64_t per_round = sums_at_once * lanes<float>;

  static float run(int64_t rounds) {
    Vector<float> sums[sums_at_once];
    for (int i = 0; i < sums_at_once; ++i) sums[i] = broadcast(static_cast<float>(i));
    const Vector<float> factor = broadcast(0.5f), term = broadcast(1.0f);  // the sums go to 2: never huge, never denormal
    for (; rounds > 0; --rounds)
      for (int i = 0; i < sums_at_once; ++i) sums[i] = sums[i] * factor + term;
    for (int i = 1; i < sums_at_once; ++i) sums[0] += sums[i];
    return sums[0][0];
  }
};

}  // namespace truesparse::ISA
