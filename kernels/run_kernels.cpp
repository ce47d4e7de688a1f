#include "run_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

#define KERNEL_FILE "runs-inl.h"
#include "foreach_isa.h"

namespace truesparse {

template <class T>
const RunKernels<T>& run_kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2:
      return avx2::RunTable<T>::table;
    case Isa::avx512:
      return avx512::RunTable<T>::table;
#elif defined(__aarch64__)
    case Isa::neon:
      return neon::RunTable<T>::table;
#endif
    default:
      return scalar::RunTable<T>::table;
  }
}

template const RunKernels<float>& run_kernels<float>(Isa);
template const RunKernels<double>& run_kernels<double>(Isa);

}  // namespace truesparse
