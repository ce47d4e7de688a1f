// The verbs of a 2-D convolution, for NCHW tensors that are contiguous. T and S are as in matrix.h.
#pragma once

#include <cstdint>

#include "bfloat16.h"
#include "runs.h"

namespace truesparse {

struct Pair {
  int64_t height, width;
};

struct Convolution {
  int64_t in_channels, out_channels;
  Pair kernel, stride, padding, dilation;
  int64_t groups;

  int64_t taps() const { return kernel.height * kernel.width; }
  int64_t phases() const { return stride.height * stride.width; }
  // Each pixel is a sample of a matrix.
  bool pointwise() const {
    const auto all = [](Pair pair, int64_t each) { return pair.height == each && pair.width == each; };
    return all(kernel, 1) && all(stride, 1) && all(padding, 0) && groups == 1;
  }
  int64_t channels_per_group() const { return in_channels / groups; }
  int64_t output(int64_t input, int64_t Pair::* axis) const {
    return (input + 2 * padding.*axis - dilation.*axis * (kernel.*axis - 1) - 1) / stride.*axis + 1;
  }
};

// y [batch, out_channels, output height, output width] = x [batch, in_channels, size] * W + bias (null: none). Runs have one part, and whole
// channels in each block.
template <class T, class S>
void convolution_spmm(const Convolution& convolution, const Runs& runs, const T* values, const T* bias, const S* x, S* y, int64_t batch, Pair size,
                      int64_t threads);

// dvalues [nnz], dx [batch, in_channels, size] and dbias [out_channels], each unless null. `runs` serves dvalues only, `transposed` and `values` dx
// only (else null). Transposed rows are (in channel, phase) and its columns out_channel * taps + tap: see transpose_convolution.
template <class T, class S>
void convolution_backward(const Convolution& convolution, const Runs* runs, const Runs* transposed, const T* values, const S* dy, const S* x, T* dvalues,
                          S* dx, T* dbias, int64_t batch, Pair size, int64_t threads);

// The transposed matrix: its indptr [in_channels * phases + 1], indices and permutation [nnz].
void transpose_convolution(const Convolution& convolution, const int32_t* indptr, const int32_t* indices, int32_t* t_indptr,
                           int32_t* t_indices, int32_t* permutation);

}  // namespace truesparse
