// The kernels of one instruction set: no include guard, because foreach_isa.h includes this once per target.
namespace truesparse::ISA {
namespace {

#include "vector-inl.h"
#include "pack-inl.h"
#include "spmm-inl.h"
#include "sddmm-inl.h"
#include "scan-inl.h"

}  // namespace

template <class T>
struct Table {
  static constexpr Kernels<T> table = {lanes<T>, TILE_VECTORS, pack<T>, unpack<T>, spmm<T>, sddmm<T>, sum<T>, spmv<T>, gather<T>, scan<T>};
};

}  // namespace truesparse::ISA
