#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define KERNEL_FILE "kernels-inl.h"
#include "foreach_isa.h"

namespace truesparse {

template <class T, class S>
const Kernels<T, S>& kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2:
      return avx2::Table<T, S>::table;
    case Isa::avx512:
      return avx512::Table<T, S>::table;
#elif defined(__aarch64__)
    case Isa::neon:
      return neon::Table<T, S>::table;
#endif
    default:
      return scalar::Table<T, S>::table;
  }
}

template const Kernels<float>& kernels<float>(Isa);
template const Kernels<double>& kernels<double>(Isa);
template const Kernels<float, Bfloat16>& kernels<float, Bfloat16>(Isa);

}  // namespace truesparse
