// The kernels of runs.h, one table for each instruction set and type of values and sums.
#pragma once

#include <cstdint>

#include "isa.h"
#include "runs.h"

namespace truesparse {

// Tiles are packed, feature-major: [features, vectors x lanes]. Sums run in the order of the connections.
template <class T>
struct RunKernels {
  int64_t tile_vectors;  // widest tile
  // target[row] += value * source[place] for the next `count` runs, which are then behind. Values of a run begin at values + its start.
  void (*multiply)(RunCursor& runs, int64_t count, int64_t alike, int64_t vectors, const T* values, const T* source, T* target);
  // dvalues = (added to, unless `first`) dtarget[row] . source[place] for the next `count` runs, in the order of the runs. Returns behind the last.
  T* (*correlate)(RunCursor& runs, int64_t count, int64_t alike, int64_t vectors, bool first, const T* source, const T* dtarget, T* dvalues);
};

template <class T>
const RunKernels<T>& run_kernels(Isa isa);

}  // namespace truesparse
