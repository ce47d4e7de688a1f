// The kernels of runs.h, one table for each instruction set and type of values and sums.
#pragma once

#include <cstdint>

#include "isa.h"
#include "runs.h"

namespace truesparse {

// How runs read packed tiles, [features, vectors x lanes]. A place is a column, `source + place * tile` its tile; or, in images, whatever the
// caller has made of it, and `unit` elements are one of it.
template <class Place>
struct Steps {
  int64_t alike;
  int64_t vectors;  // of a tile
  int64_t unit;     // of a place, in elements; nothing else than a tile where places have 16 bits
  int64_t stride;   // from one row of the target to the next, in elements
};

// Sums run in the order of the connections.
template <class T, class Place>
struct RunKernels {
  int64_t tile_vectors;  // widest tile
  // target[row] (+)= value * source[place] for the next `count` runs, which are then behind. Values of a run begin at values + its start.
  // `first` starts from bias (null: zero) instead of from the target.
  void (*multiply)(RunCursor<Place>& runs, int64_t count, const Steps<Place>& steps, bool first, const T* values, const T* bias, const T* source, T* target);
  // dvalues (+)= dtarget[row] . source[place] for the next `count` runs, which are then behind; added to unless `first`. dvalues are in the order of
  // the runs, of a run its parts of part_of_run connections, of a part its rows. Returns behind the last.
  T* (*correlate)(RunCursor<Place>& runs, int64_t count, const Steps<Place>& steps, bool first, const T* source, const T* dtarget, T* dvalues);
};

template <class T, class Place>
const RunKernels<T, Place>& run_kernels(Isa isa);

}  // namespace truesparse
