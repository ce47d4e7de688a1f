// The forward of a convolution whose weights and whose size of input no longer change: everything that can be is decided beforehand.
#pragma once

#include <cstdint>
#include <vector>

#include "convolution.h"
#include "isa.h"
#include "kernels.h"

namespace truesparse {

// What follows the product: limits, then the largest of each two by two positions.
struct Finish {
  Limits<float> limits;
  bool pool;
};

class PlannedConvolution {
 public:
  // For `batch` images of `size`. Bias [out_channels] or null. Runs on the instruction set of now.
  PlannedConvolution(const Convolution& convolution, const int32_t* indptr, const int32_t* indices, const float* values, const float* bias,
                     Finish finish, int64_t batch, Pair size, int64_t threads);

  // y [batch, out_channels, output height, output width], halved if pooled, of x [batch, in_channels, size].
  void run(const float* x, float* y) const;

  int64_t bytes() const;

 private:
  // A part of the work: some samples, some rows of the weights (whole groups if there are several), some rows of the image.
  struct Chunk {
    int64_t sample, samples, first, last, row, rows;
  };

  void order_connections(const int32_t* indptr, const int32_t* indices, const float* values);
  Chunk chunk(int64_t number) const;
  void multiply(const Chunk& chunk, int64_t positions, const float* source, float* target, int64_t stride) const;
  void pack(const Chunk& chunk, const float* x, float* source, float* split) const;
  void plan_copies();
  void pack_shifted(const Chunk& chunk, const float* x, float* source) const;
  void pack_columns(const float* image, int64_t side, int64_t first, int64_t rows, float* split, float* planes) const;
  void unpack(const Chunk& chunk, float* target, float* y) const;

  const Convolution convolution_;
  const Finish finish_;
  const Kernels<float>& kernels_;
  const int64_t batch_, threads_;
  const Pair size_;
  std::vector<float> bias_;

  Pair output_, reach_;       // reach: rows and columns from the first to the last tap, in output positions
  bool direct_;               // x and y are used where they are
  bool shifted_;              // a copy of each channel for each column of taps, shifted by that many: vectors are aligned in memory
  bool straight_;             // sums are written where they belong
  int64_t planes_;            // of a channel: phases, or copies
  int64_t width_, stacked_;   // samples side by side, or one below the other
  int64_t pitch_, height_;    // positions from row to row; rows from sample to sample
  int64_t band_, bands_;      // rows of the output at once
  int64_t part_, parts_;      // rows of the weights at once
  int64_t blocks_, alike_;
  int64_t source_plane_, target_plane_;  // elements of a channel (and phase, or copy)

  // Block by block, row by row: what the kernel reads is in sequence.
  std::vector<int32_t> begins_, offsets_;
  std::vector<float> values_;
  std::vector<float> kept_;  // of each copy, which columns have something of the image
  int64_t period_;
  std::vector<int32_t> source_place_, target_place_;  // of samples side by side
};

}  // namespace truesparse
