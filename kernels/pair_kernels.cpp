#include "pair_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"
#include "pairs.h"

#define KERNEL_FILE "pairs-inl.h"
#include "foreach_isa.h"

namespace truesparse {

const PairKernels& pair_kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2:
      return avx2::PairTable::table;
    case Isa::avx512:
      return avx512::PairTable::table;
#elif defined(__aarch64__)
    case Isa::neon:
      return neon::PairTable::table;
#endif
    default:
      return scalar::PairTable::table;
  }
}

}  // namespace truesparse
