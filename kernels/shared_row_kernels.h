// The kernels of shared_rows.h, one table for each instruction set and type of values and sums.
#pragma once

#include <cstdint>

#include "isa.h"

namespace truesparse {

// Some of the columns that the rows of one group share.
template <class T>
struct SharedColumns {
  int64_t rows, count;
  const int32_t* column;  // [count]
  const T* values;        // [rows, count], `pitch` elements from one row to the next
  int64_t pitch;
};

// Packed tiles are [features, vectors x lanes]: those of the rows begin at `target`, those of all columns at `source`.
template <class T>
struct SharedRowKernels {
  int64_t tile_vectors;  // widest tile, a multiple of what is multiplied side by side
  // target[row] (+)= value * source[column]; `first` starts from bias (null: zero) instead of from the target. Sums run in the order of the columns.
  void (*multiply)(const SharedColumns<T>& shared, int64_t vectors, bool first, const T* bias, const T* source, T* target);
  // dsource[column] += value * dtarget[row], in the order of the rows.
  void (*spread)(const SharedColumns<T>& shared, int64_t vectors, const T* dtarget, T* dsource);
  // dvalues [count, rows] (+)= dtarget . source over `samples`, added to unless `first`. dtarget is [samples, rows] here; rows are a multiple of the lanes.
  void (*correlate)(const SharedColumns<T>& shared, int64_t vectors, int64_t samples, bool first, const T* dtarget, const T* source, T* dvalues);
};

template <class T>
const SharedRowKernels<T>& shared_row_kernels(Isa isa);

}  // namespace truesparse
