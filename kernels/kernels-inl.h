// The kernels of one instruction set: no include guard, because foreach_isa.h includes this once per target.
namespace truesparse::ISA {
namespace {

#include "vector-inl.h"
#include "storage-inl.h"
#include "pack-inl.h"
#include "pool-inl.h"
#include "spmm-inl.h"
#include "scan-inl.h"

}  // namespace

template <class T, class S>
struct Table {
  static constexpr Kernels<T, S> table = {lanes<T>, TILE_VECTORS, pack<T, S>, unpack<T, S>, widen<T, S>, narrow<T, S>, every<T, S>, copy_rows<T>, keep<T>,
                                          pool<T>, spmm<T>, sum<T>, spmv<T>, gather<T>, scan<T>};
};

}  // namespace truesparse::ISA
