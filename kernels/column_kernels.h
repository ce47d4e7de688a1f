// The kernels of columns.h, one for each instruction set.
#pragma once

#include "columns.h"
#include "isa.h"

namespace truesparse {

// The inputs of one sample that are not zero.
struct NonzeroInputs {
  const int32_t* columns;  // ascending
  const float* values;
  int64_t count;
};

// Rows `begin` to `end` of one sample; `begin` is a multiple of column_lanes, and there are no more than rows_at_once of them.
template <class V>
using ColumnKernel = void (*)(const Columns<V>& columns, int64_t begin, int64_t end, const NonzeroInputs& inputs, const float* bias, bool relu,
                              float* y);
constexpr int64_t rows_at_once = 4096;

template <class V>
using ColumnListKernel = void (*)(const ColumnLists<V>& lists, int64_t part, const NonzeroInputs& inputs, const float* bias, bool relu, float* y);

template <class V>
ColumnKernel<V> column_kernel(Isa isa);
template <class V>
ColumnListKernel<V> column_list_kernel(Isa isa);

}  // namespace truesparse
