// What follows the sums of a layer? Something is added to them, then comes an activation: one pass while they are still in the caches.
#pragma once

#include <cstdint>

#include "isa.h"

namespace truesparse {

struct Epilogue {
  bool gelu;        // each number times the share of a normal distribution that is below it
  float low, high;  // then what is less becomes `low`, and what is more `high`; NaN stays
};

using EpilogueKernel = void (*)(const Epilogue& epilogue, const float* added, int64_t count, float* y);

EpilogueKernel epilogue_kernel(Isa isa);

// y [count] = the epilogue of y + added, which is [count] too, or null: nothing.
void finish(const Epilogue& epilogue, const float* added, float* y, int64_t count, int64_t threads);

}  // namespace truesparse
