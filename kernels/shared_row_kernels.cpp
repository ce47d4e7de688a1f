#include "shared_row_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

#define KERNEL_FILE "shared-rows-inl.h"
#include "foreach_isa.h"

namespace truesparse {

template <class T>
const SharedRowKernels<T>& shared_row_kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2:
      return avx2::SharedRowTable<T>::table;
    case Isa::avx512:
      return avx512::SharedRowTable<T>::table;
#elif defined(__aarch64__)
    case Isa::neon:
      return neon::SharedRowTable<T>::table;
#endif
    default:
      return scalar::SharedRowTable<T>::table;
  }
}

template const SharedRowKernels<float>& shared_row_kernels<float>(Isa);
template const SharedRowKernels<double>& shared_row_kernels<double>(Isa);

}  // namespace truesparse
