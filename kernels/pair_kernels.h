// The kernels of pairs.h, one table for each instruction set.
#pragma once

#include <cstdint>

#include "isa.h"

namespace truesparse {

// Some groups of one block: where the first of them begins in the arrays of `Pairs`.
struct PairGroups {
  int64_t abreast;
  const uint16_t* steps;
  const int32_t* members;
  const uint16_t* places;
  const float* values;
};

// Tiles are packed, feature-major: [features, vectors x lanes].
struct PairKernels {
  int64_t (*most_vectors)(int64_t abreast);  // of a tile
  // target [rows, tile] += W source [columns of the block + 1, tile] for the next `count` groups, which are then behind.
  void (*add)(PairGroups& groups, int64_t count, int64_t vectors, const float* source, float* target);
  // target [rows, tile] = bias [rows], null: 0.
  void (*begin)(int64_t rows, int64_t vectors, const float* bias, float* target);
  // What is negative becomes 0.
  void (*rectify)(int64_t rows, int64_t vectors, float* target);
};

const PairKernels& pair_kernels(Isa isa);

}  // namespace truesparse
