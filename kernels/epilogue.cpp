#include "epilogue.h"

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"
#include "threads.h"

#define KERNEL_FILE "epilogue-inl.h"
#include "foreach_isa.h"

namespace truesparse {

EpilogueKernel epilogue_kernel(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2:
      return avx2::EpilogueTable::kernel;
    case Isa::avx512:
      return avx512::EpilogueTable::kernel;
#elif defined(__aarch64__)
    case Isa::neon:
      return neon::EpilogueTable::kernel;
#endif
    default:
      return scalar::EpilogueTable::kernel;
  }
}

void finish(const Epilogue& epilogue, const float* added, float* y, int64_t count, int64_t threads) {
  constexpr int64_t piece = 16 << 10;
  const EpilogueKernel kernel = epilogue_kernel(current_isa());
  parallel_for((count + piece - 1) / piece, threads, [&](int64_t, int64_t item) {
    const int64_t begin = item * piece;
    kernel(epilogue, added ? added + begin : nullptr, std::min(piece, count - begin), y + begin);
  });
}

}  // namespace truesparse
