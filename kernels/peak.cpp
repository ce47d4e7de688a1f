#include "peak.h"

#include "kernels.h"
#include "threads.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define KERNEL_FILE "peak-inl.h"
#include "foreach_isa.h"

namespace truesparse {
namespace {

template <class Peak>
int64_t on_threads(int64_t rounds, int64_t threads) {
  parallel_for(threads, threads, [rounds](int64_t, int64_t) {
    volatile float used = Peak::run(rounds);  // or the compiler would see that nobody asks for the sums
    (void)used;
  });
  return threads * rounds * Peak::per_round;
}

}  // namespace

int64_t multiply_adds(Isa isa, int64_t rounds, int64_t threads) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2:
      return on_threads<avx2::Peak>(rounds, threads);
    case Isa::avx512:
      return on_threads<avx512::Peak>(rounds, threads);
#elif defined(__aarch64__)
    case Isa::neon:
      return on_threads<neon::Peak>(rounds, threads);
#endif
    default:
      return on_threads<scalar::Peak>(rounds, threads);
  }
}

}  // namespace truesparse
