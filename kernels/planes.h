// Where does an image lie in packed memory?
//
// A packed plane holds `width` samples of one channel: position (row, column) of sample s at plane[(row * pitch + column) * width + s].
// Padding is zero and shared: a row's left padding is the right padding of the row before, so tiles run on over the ends of rows.
// With a stride there is one plane per phase (row % stride, column % stride), so that neighbours of the output are neighbours here too.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "convolution.h"
#include "kernels.h"

namespace truesparse {

template <class T, class S>
class Planes {
 public:
  // An image of `channels` x `size` with `padding` above and left; `rows` packed rows of `pitch` positions per phase, at least
  // `slack` zero positions after them; `width` samples side by side.
  Planes(const Kernels<T, S>& k, int64_t channels, Pair size, Pair padding, Pair phases, int64_t rows, int64_t pitch, int64_t slack, int64_t width)
      : k_(k), channels_(channels), size_(size), padding_(padding), phases_(phases), rows_(rows), pitch_(pitch), width_(width) {
    // An odd number of cache lines per plane: an even one would let the channels compete for a few sets of the cache.
    const int64_t line = 64, position = width * static_cast<int64_t>(sizeof(T));
    const int64_t lines = ((rows * pitch + slack) * position + line - 1) / line;
    plane_ = (lines | 1) * line / position;
    place_.reserve(rows * phases.height * size.width);
    for (int64_t row = 0; row < rows * phases.height; ++row)
      for (int64_t column = padding.width; column < padding.width + size.width; ++column)
        place_.push_back(static_cast<int32_t>((row % phases.height * phases.width + column % phases.width) * plane_ +
                                              row / phases.height * pitch + column / phases.width));
  }

  int64_t plane() const { return plane_; }                                                     // positions
  int64_t stride() const { return plane_ * width_; }                                           // elements
  int64_t elements() const { return channels_ * phases_.height * phases_.width * stride(); }

  // Packed rows `first_row` on (per phase) of `samples` samples of `image`. The scratch must once have been zero.
  void pack(int64_t first_row, int64_t samples, const S* image, T* packed) const {
    const Range own = present(first_row);
    for (int64_t channel = 0; channel < channels_; ++channel) {
      T* to = packed + channel * phases_.height * phases_.width * stride();
      for (int64_t row = 0; row < rows_ * phases_.height; ++row)
        if (row < own.begin || row >= own.end)
          for (int64_t phase = 0; phase < phases_.width; ++phase)
            std::memset(to + (row % phases_.height * phases_.width + phase) * stride() + row / phases_.height * pitch_ * width_, 0,
                        pitch_ * width_ * sizeof(T));
      if (own.begin < own.end) k_.pack(packing(own, samples), image + user_offset(channel, first_row, own), to);
    }
  }

  // The other way, for `rows` packed rows.
  void unpack(int64_t first_row, int64_t rows, int64_t samples, const T* packed, S* image) const {
    Range own = present(first_row);
    own.end = std::min(own.end, rows * phases_.height);
    if (own.begin >= own.end) return;
    for (int64_t channel = 0; channel < channels_; ++channel)
      k_.unpack(packing(own, samples), packed + channel * phases_.height * phases_.width * stride(), image + user_offset(channel, first_row, own));
  }

 private:
  struct Range {
    int64_t begin, end;
  };

  // Rows of the image among the packed ones, counted from first_row.
  Range present(int64_t first_row) const {
    const int64_t shift = padding_.height - first_row * phases_.height;
    return {std::max<int64_t>(0, shift), std::min(rows_ * phases_.height, shift + size_.height)};
  }
  int64_t user_offset(int64_t channel, int64_t first_row, Range own) const {
    return (channel * size_.height + first_row * phases_.height + own.begin - padding_.height) * size_.width;
  }
  Packing packing(Range own, int64_t samples) const {
    return {samples, width_, channels_ * size_.height * size_.width, (own.end - own.begin) * size_.width, place_.data() + own.begin * size_.width};
  }

  const Kernels<T, S>& k_;
  int64_t channels_;
  Pair size_, padding_, phases_;
  int64_t rows_, pitch_, width_, plane_;
  std::vector<int32_t> place_;  // [packed rows * phases, image width], relative to the channel
};

}  // namespace truesparse
