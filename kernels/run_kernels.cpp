#include "run_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

#define KERNEL_FILE "runs-inl.h"
#include "foreach_isa.h"

namespace truesparse {

template <class T, class Place>
const RunKernels<T, Place>& run_kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2:
      return avx2::RunTable<T, Place>::table;
    case Isa::avx512:
      return avx512::RunTable<T, Place>::table;
#elif defined(__aarch64__)
    case Isa::neon:
      return neon::RunTable<T, Place>::table;
#endif
    default:
      return scalar::RunTable<T, Place>::table;
  }
}

template const RunKernels<float, uint16_t>& run_kernels<float, uint16_t>(Isa);
template const RunKernels<double, uint16_t>& run_kernels<double, uint16_t>(Isa);
template const RunKernels<float, int32_t>& run_kernels<float, int32_t>(Isa);
template const RunKernels<double, int32_t>& run_kernels<double, int32_t>(Isa);

}  // namespace truesparse
