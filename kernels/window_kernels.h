// The kernels of windows.h, one for each instruction set.
#pragma once

#include "isa.h"
#include "windows.h"

namespace truesparse {

// Blocks `begin` to `end` for all samples; `stride` floats from a sample to the next.
template <class V>
using WindowKernel = void (*)(const Windows<V>& windows, int64_t begin, int64_t end, const float* bias, bool relu, const float* x, int64_t stride,
                              float* y, int64_t batch);

template <class V>
WindowKernel<V> window_kernel(Isa isa);

}  // namespace truesparse
