#include "window_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernels.h"

#define KERNEL_FILE "windows-inl.h"
#include "foreach_isa.h"

namespace truesparse {

template <class V>
WindowKernel<V> window_kernel(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2:
      return avx2::WindowTable<V>::kernel;
    case Isa::avx512:
      return avx512::WindowTable<V>::kernel;
#elif defined(__aarch64__)
    case Isa::neon:
      return neon::WindowTable<V>::kernel;
#endif
    default:
      return scalar::WindowTable<V>::kernel;
  }
}

template WindowKernel<float> window_kernel<float>(Isa);
template WindowKernel<Bfloat16> window_kernel<Bfloat16>(Isa);
template WindowKernel<int8_t> window_kernel<int8_t>(Isa);

}  // namespace truesparse
