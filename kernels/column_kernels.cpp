#include "column_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernels.h"

#define KERNEL_FILE "columns-inl.h"
#include "foreach_isa.h"

namespace truesparse {

template <class V>
ColumnKernel<V> column_kernel(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2:
      return avx2::ColumnTable<V>::whole;
    case Isa::avx512:
      return avx512::ColumnTable<V>::whole;
#elif defined(__aarch64__)
    case Isa::neon:
      return neon::ColumnTable<V>::whole;
#endif
    default:
      return scalar::ColumnTable<V>::whole;
  }
}

template <class V>
ColumnListKernel<V> column_list_kernel(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2:
      return avx2::ColumnTable<V>::lists;
    case Isa::avx512:
      return avx512::ColumnTable<V>::lists;
#elif defined(__aarch64__)
    case Isa::neon:
      return neon::ColumnTable<V>::lists;
#endif
    default:
      return scalar::ColumnTable<V>::lists;
  }
}

template ColumnKernel<float> column_kernel<float>(Isa);
template ColumnKernel<Bfloat16> column_kernel<Bfloat16>(Isa);
template ColumnKernel<int8_t> column_kernel<int8_t>(Isa);
template ColumnListKernel<float> column_list_kernel<float>(Isa);
template ColumnListKernel<Bfloat16> column_list_kernel<Bfloat16>(Isa);
template ColumnListKernel<int8_t> column_list_kernel<int8_t>(Isa);

}  // namespace truesparse
