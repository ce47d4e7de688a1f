#include "planned_convolution.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

#include "layout.h"
#include "planes.h"
#include "threads.h"
#include "workspace.h"

namespace truesparse {
namespace {

constexpr int64_t nearest_cache = 40 << 10;  // bytes of source that a tile touches per block of channels
constexpr int64_t second_cache = 3 << 19;    // bytes of packed planes per chunk
constexpr int64_t of_groups = 256 << 10;     // the same where each row reads a few channels only: several chunks, for the prefetcher
constexpr int64_t line = 64;
constexpr int64_t aligned = 8;           // positions: vectors that begin at a multiple of it are loaded at once, or nearly so
constexpr int64_t worth_a_copy = 4;      // connections that read a copy of a channel: fewer gain less than it costs

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Channels that are this far apart use a quarter of the cache or less: not where they are.
bool crowded(int64_t pixels) { return std::gcd(pixels * static_cast<int64_t>(sizeof(float)) / line, int64_t{64}) > 16; }

}  // namespace

PlannedConvolution::PlannedConvolution(const Convolution& convolution, const int32_t* indptr, const int32_t* indices, const float* values,
                                       const float* bias, Finish finish, int64_t batch, Pair size, int64_t threads)
    : convolution_(convolution), finish_(finish), kernels_(kernels<float>(current_isa())), batch_(batch), threads_(threads), size_(size) {
  const Convolution& c = convolution_;
  const int64_t lanes = kernels_.lanes, rows = c.out_channels, phases = c.phases(), per_group = std::max<int64_t>(1, rows / c.groups);
  if (bias) bias_.assign(bias, bias + rows);
  batch = std::max<int64_t>(1, batch);  // none are planned as one
  output_ = {c.output(size.height, &Pair::height), c.output(size.width, &Pair::width)};
  reach_ = {(c.kernel.height - 1) * c.dilation.height / c.stride.height, (c.kernel.width - 1) * c.dilation.width / c.stride.width};
  const Pair phase{divide_up(size.height + c.padding.height, c.stride.height), divide_up(size.width + c.padding.width, c.stride.width)};
  height_ = std::max(phase.height, output_.height);

  const int64_t pixels = size.height * size.width;
  direct_ = c.pointwise() && !finish.pool && pixels % lanes == 0 && !crowded(pixels) && c.in_channels * pixels <= INT32_MAX;
  // Samples side by side make aligned vectors, but have to be transposed.
  width_ = !c.pointwise() && 2 * divide_up(batch, lanes) * lanes <= 3 * batch ? lanes : 1;

  shifted_ = width_ == 1 && c.groups == 1 && phases == 1 && c.kernel.width > 1 && output_.width > 0 && output_.width % aligned == 0 &&
             indptr[rows] >= worth_a_copy * c.in_channels * c.kernel.width;
  if (shifted_) reach_.width = 0;
  planes_ = shifted_ ? c.kernel.width : phases;
  pitch_ = shifted_ ? output_.width : std::max(phase.width, output_.width);

  // Rows of the weights.
  const int64_t sample_bytes = (c.channels_per_group() * planes_ + per_group) * height_ * pitch_ * width_ * static_cast<int64_t>(sizeof(float));
  part_ = c.groups > 1 ? std::clamp<int64_t>(of_groups / std::max<int64_t>(1, sample_bytes), 1, c.groups) * per_group : rows;

  // Samples one below the other, as many as there is room for; or rows of one.
  const int64_t in_part = c.groups > 1 ? part_ / per_group * c.channels_per_group() : c.in_channels;
  const int64_t row_bytes = (in_part * planes_ + part_) * pitch_ * width_ * static_cast<int64_t>(sizeof(float));
  const int64_t most_rows = std::max<int64_t>(1, second_cache / std::max<int64_t>(1, row_bytes));
  stacked_ = width_ > 1 || direct_ ? 1 : std::clamp<int64_t>(most_rows / height_, 1, std::max<int64_t>(1, divide_up(batch, threads)));
  band_ = direct_ || most_rows >= height_ ? output_.height : std::clamp<int64_t>(most_rows - reach_.height, 1, output_.height);
  const int64_t groups_of_samples = divide_up(batch, stacked_ * width_), step = direct_ ? lanes : finish.pool ? 2 : 1;
  if (groups_of_samples * divide_up(rows, part_) * divide_up(output_.height, band_) < threads) {
    band_ = std::min(band_, divide_up(output_.height, threads));
    const int64_t short_of = divide_up(threads, divide_up(output_.height, divide_up(band_, step) * step) * groups_of_samples);
    const int64_t whole = c.groups > 1 ? per_group : 4;
    part_ = std::min(part_, divide_up(divide_up(rows, short_of), whole) * whole);
  }
  band_ = std::min(output_.height, divide_up(band_, step) * step);
  bands_ = divide_up(output_.height, band_);
  part_ = std::max<int64_t>(1, part_);
  parts_ = divide_up(rows, part_);

  straight_ = direct_ || (shifted_ && !finish.pool && stacked_ == 1 && pitch_ % lanes == 0);

  // An odd number of cache lines: an even one would let the channels compete for a few sets of the cache.
  const auto odd_lines = [&](int64_t positions) {
    const int64_t bytes = width_ * static_cast<int64_t>(sizeof(float));
    return (divide_up(positions * bytes, line) | 1) * line / bytes;
  };
  const int64_t slack = lanes / width_, positions = ((stacked_ - 1) * height_ + band_) * pitch_;
  source_plane_ = direct_ ? pixels : odd_lines(positions + reach_.height * pitch_ + reach_.width + slack);
  target_plane_ = direct_ ? pixels : odd_lines(positions + slack);
  if (c.in_channels * planes_ * source_plane_ > INT32_MAX)
    throw std::length_error("rows of an image hold " + std::to_string(c.in_channels * planes_ * source_plane_) +
                            " numbers, and a convolution takes up to 2^31 - 1 at a time: pass narrower images");
  order_connections(indptr, indices, values);
  if (shifted_) plan_copies();
  if (width_ == 1) return;
  for (int64_t row = 0; row < (band_ + reach_.height) * c.stride.height; ++row)
    for (int64_t column = c.padding.width; column < c.padding.width + size.width; ++column)
      source_place_.push_back(static_cast<int32_t>((row % c.stride.height * c.stride.width + column % c.stride.width) * source_plane_ +
                                                   row / c.stride.height * pitch_ + column / c.stride.width));
  for (int64_t row = 0; row < band_; ++row)
    for (int64_t column = 0; column < output_.width; ++column) target_place_.push_back(static_cast<int32_t>(row * pitch_ + column));
}

void PlannedConvolution::order_connections(const int32_t* indptr, const int32_t* indices, const float* values) {
  const Convolution& c = convolution_;
  const int64_t rows = c.out_channels, taps = c.taps(), channels = c.channels_per_group(), per_group = std::max<int64_t>(1, rows / c.groups);
  alike_ = rows_alike(rows, indptr, indices, per_group);
  const int64_t vectors = divide_up(((stacked_ - 1) * height_ + band_) * pitch_ * width_, kernels_.lanes);
  const int64_t tile = divide_up(vectors, std::max<int64_t>(1, divide_up(vectors, kernels_.tile_vectors))) * kernels_.lanes;
  const int64_t touched = c.kernel.height * (tile + (c.kernel.width - 1) * width_) * static_cast<int64_t>(sizeof(float));
  const int64_t room = std::max<int64_t>(1, nearest_cache / touched);
  blocks_ = c.groups > 1 ? 1 : std::max<int64_t>(1, divide_up(channels, room));
  const int64_t in_block = std::max<int64_t>(1, divide_up(channels, blocks_)) * taps;

  std::vector<int32_t> of_column(channels * taps);
  for (int64_t i = 0; i < channels * taps; ++i) {
    const int64_t h = i / c.kernel.width % c.kernel.height * c.dilation.height, w = i % c.kernel.width * c.dilation.width;
    const int64_t plane = shifted_ ? i % c.kernel.width : h % c.stride.height * c.stride.width + w % c.stride.width;
    of_column[i] = static_cast<int32_t>((i / taps * planes_ + plane) * source_plane_ + h / c.stride.height * pitch_ + (shifted_ ? 0 : w / c.stride.width));
  }
  begins_.reserve(blocks_ * rows + 1);
  offsets_.reserve(indptr[rows]);
  values_.reserve(indptr[rows]);
  std::vector<int32_t> next(indptr, indptr + rows);
  for (int64_t block = 0; block < blocks_; ++block)
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t group = c.groups > 1 ? row % part_ / per_group : 0, end = (block + 1) * in_block;
      begins_.push_back(static_cast<int32_t>(offsets_.size()));
      for (int32_t& p = next[row]; p < indptr[row + 1] && indices[p] < end; ++p) {
        offsets_.push_back(of_column[indices[p]] + static_cast<int32_t>(group * channels * planes_ * source_plane_));
        values_.push_back(values[p]);
      }
    }
  begins_.push_back(static_cast<int32_t>(offsets_.size()));
}

PlannedConvolution::Chunk PlannedConvolution::chunk(int64_t number) const {
  const int64_t at_once = stacked_ * width_, sample = number / (bands_ * parts_) * at_once, part = number / bands_ % parts_, band = number % bands_;
  return {sample,        std::min(at_once, batch_ - sample), part * part_, std::min((part + 1) * part_, convolution_.out_channels),
          band * band_, std::min(band_, output_.height - band * band_)};
}

// Tile by tile, and for each all blocks of channels.
void PlannedConvolution::multiply(const Chunk& chunk, int64_t positions, const float* source, float* target, int64_t stride) const {
  const Kernels<float>& k = kernels_;
  const int64_t rows = convolution_.out_channels, vectors = divide_up(positions, k.lanes), tiles = divide_up(vectors, k.tile_vectors);
  const float* bias = bias_.empty() ? nullptr : bias_.data();
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t begin = vectors * tile / tiles, end = vectors * (tile + 1) / tiles, at = begin * k.lanes;
    for (int64_t block = 0; block < blocks_; ++block) {
      const int32_t* begins = begins_.data() + block * rows;
      const Connections<float> c{chunk.first, chunk.last, begins, begins + 1, offsets_.data(), values_.data(), width_, alike_,
                                 block + 1 == blocks_ ? &finish_.limits : nullptr};
      k.spmm(c, end - begin, block == 0, bias, source + at, target + at, stride);
    }
  }
}

void PlannedConvolution::run(const float* x, float* y) const {
  const Convolution& c = convolution_;
  const int64_t chunks = divide_up(batch_, stacked_ * width_) * parts_ * bands_;
  if (direct_) {
    parallel_for(chunks, threads_, [&](int64_t, int64_t number) {
      const Chunk own = chunk(number);
      const int64_t pixels = size_.height * size_.width, at = own.row * size_.width;
      multiply(own, own.rows * size_.width, x + own.sample * c.in_channels * pixels + at, y + own.sample * c.out_channels * pixels + at, pixels);
    });
    return;
  }
  const int64_t per_group = std::max<int64_t>(1, c.out_channels / c.groups);
  const int64_t channels = c.groups > 1 ? part_ / per_group * c.channels_per_group() : c.in_channels;
  const size_t source_bytes = lines<float>(channels * planes_ * source_plane_ * width_), target_bytes = straight_ ? 0 : lines<float>(part_ * target_plane_ * width_);
  const size_t split_bytes = c.stride.width > 1 ? lines<float>(size_.height * divide_up(size_.width, c.stride.width)) : 0;
  const size_t bytes = source_bytes + target_bytes + split_bytes;
  const Workspace scratch(bytes * threads_);
  parallel_for(chunks, threads_, [&](int64_t slot, int64_t number) {
    float* source = scratch.as<float>(bytes * slot);
    float* target = scratch.as<float>(bytes * slot + source_bytes);
    const Chunk own = chunk(number);
    const int64_t stacked = width_ > 1 ? 1 : own.samples, stride = target_plane_ * width_;
    const int64_t positions = ((stacked - 1) * height_ + own.rows) * pitch_ * width_;
    pack(own, x, source, scratch.as<float>(bytes * slot + source_bytes + target_bytes));
    if (straight_) {
      const int64_t pixels = output_.height * output_.width;
      multiply(own, positions, source, y + own.sample * c.out_channels * pixels + own.row * output_.width, pixels);
      return;
    }
    multiply(own, positions, source, target - own.first * stride, stride);
    unpack(own, target, y);
  });
}

void PlannedConvolution::pack(const Chunk& chunk, const float* x, float* source, float* split) const {
  if (shifted_) return pack_shifted(chunk, x, source);
  const Convolution& c = convolution_;
  const int64_t per_group = std::max<int64_t>(1, c.out_channels / c.groups), pixels = size_.height * size_.width;
  const int64_t first = c.groups > 1 ? chunk.first / per_group * c.channels_per_group() : 0;
  const int64_t last = c.groups > 1 ? divide_up(chunk.last, per_group) * c.channels_per_group() : c.in_channels;
  const int64_t stacked = width_ > 1 ? 1 : chunk.samples, rows = (stacked - 1) * height_ + chunk.rows + reach_.height;
  const bool full = pitch_ == size_.width && c.phases() == 1 && c.padding.height == 0 && width_ == 1;
  const int64_t written = full ? std::min(rows, stacked * size_.height) * pitch_ : 0;
  for (int64_t channel = first; channel < last; ++channel) {
    float* const planes = source + (channel - first) * planes_ * source_plane_ * width_;
    std::memset(planes + written * width_, 0, (planes_ * source_plane_ - written) * width_ * sizeof(float));
    if (width_ > 1) {
      const int64_t above = c.padding.height - chunk.row * c.stride.height;  // rows of phases before the image
      const int64_t top = std::max<int64_t>(0, above), bottom = std::min(rows * c.stride.height, above + size_.height);
      const float* image = x + (chunk.sample * c.in_channels + channel) * pixels + (top - above) * size_.width;
      if (top < bottom)
        kernels_.pack({chunk.samples, width_, c.in_channels * pixels, (bottom - top) * size_.width, source_place_.data() + top * size_.width}, image, planes);
      continue;
    }
    for (int64_t sample = 0; sample < stacked; ++sample)
      for (int64_t side = 0; side < c.stride.width; ++side)
        pack_columns(x + ((chunk.sample + sample) * c.in_channels + channel) * pixels, side, chunk.row, sample + 1 < stacked ? height_ : rows - sample * height_,
                     split, planes + side * source_plane_ + sample * height_ * pitch_);
  }
}

// Of the columns of each copy, which are inside the image. Where rows of the copy are as long as those of the image, the kernel wants to know.
void PlannedConvolution::plan_copies() {
  const Convolution& c = convolution_;
  const bool fits = pitch_ == size_.width && (pitch_ % kernels_.lanes == 0 || kernels_.lanes % pitch_ == 0);
  period_ = fits ? std::max(pitch_, kernels_.lanes) : 0;
  for (int64_t copy = 0; copy < planes_; ++copy)
    for (int64_t i = 0; i < period_; ++i) {
      const int64_t column = i % pitch_ + copy * c.dilation.width - c.padding.width;
      kept_.push_back(column >= 0 && column < size_.width ? 1.0f : 0.0f);
    }
}

void PlannedConvolution::pack_shifted(const Chunk& chunk, const float* x, float* source) const {
  const Convolution& c = convolution_;
  const int64_t columns = size_.width, pixels = size_.height * columns, rows = (chunk.samples - 1) * height_ + chunk.rows + reach_.height;
  for (int64_t sample = 0; sample < chunk.samples; ++sample) {
    const bool last = sample + 1 == chunk.samples;
    const int64_t own = last ? rows - sample * height_ : height_, above = c.padding.height - chunk.row;
    const int64_t top = std::clamp<int64_t>(above, 0, own), bottom = std::clamp<int64_t>(above + size_.height, top, own);
    const int64_t count = (bottom - top) * pitch_, end = last ? source_plane_ - sample * height_ * pitch_ : own * pitch_;
    for (int64_t copy = 0; copy < planes_; ++copy) {
      const int64_t shift = copy * c.dilation.width - c.padding.width;
      const int64_t left = std::clamp<int64_t>(-shift, 0, pitch_), right = std::clamp<int64_t>(columns - shift, left, pitch_);
      for (int64_t channel = 0; channel < c.in_channels; ++channel) {
        const int64_t place = ((chunk.sample + sample) * c.in_channels + channel) * pixels + (top - above) * columns + shift;  // in x
        float* const to = source + (channel * planes_ + copy) * source_plane_ + sample * height_ * pitch_;
        // What lies before and after a row is of its neighbours, and left out; those at the ends of x have none.
        if (period_ && place >= 0 && place + count <= batch_ * c.in_channels * pixels) {
          kernels_.keep(x + place, kept_.data() + copy * period_, period_, top * pitch_, count, end - top * pitch_ - count, to);
          continue;
        }
        std::fill_n(to, end, 0.0f);
        if (left < right && count) kernels_.copy_rows(x + place + left, columns, bottom - top, right - left, to + top * pitch_ + left, pitch_);
      }
    }
  }
}

// Every column of one phase, `side`; packed rows from `first` on.
void PlannedConvolution::pack_columns(const float* image, int64_t side, int64_t first, int64_t rows, float* split, float* planes) const {
  const Convolution& c = convolution_;
  const int64_t before = divide_up(std::max<int64_t>(0, c.padding.width - side), c.stride.width), start = before * c.stride.width + side - c.padding.width;
  const int64_t columns = std::clamp<int64_t>(divide_up(size_.width - start, c.stride.width), 0, pitch_ - before);
  const int64_t begin = std::clamp<int64_t>(first * c.stride.height - c.padding.height, 0, size_.height);  // rows of the image
  const int64_t end = std::clamp<int64_t>((first + rows) * c.stride.height - c.padding.height, 0, size_.height);
  if (begin == end || !columns) return;
  int64_t across = size_.width;
  image += begin * across + start;
  if (c.stride.width > 1) {
    across = divide_up(size_.width, c.stride.width);
    if (size_.width % c.stride.width == 0) kernels_.every(image, (end - begin - 1) * across + columns, c.stride.width, split);
    else
      for (int64_t row = 0; row < end - begin; ++row) kernels_.every(image + row * size_.width, columns, c.stride.width, split + row * across);
    image = split;
  }
  for (int64_t phase = 0; phase < c.stride.height; ++phase) {
    const int64_t above = c.padding.height - phase;  // rows before the image, of which every stride-th is one of ours
    const int64_t top = std::max<int64_t>(0, divide_up(std::max<int64_t>(0, above), c.stride.height) - first);
    const int64_t bottom = std::min(rows, divide_up(above + size_.height, c.stride.height) - first);
    if (top < bottom)
      kernels_.copy_rows(image + ((first + top) * c.stride.height - above - begin) * across, c.stride.height * across, bottom - top, columns,
                         planes + phase * c.stride.width * source_plane_ + top * pitch_ + before, pitch_);
  }
}

void PlannedConvolution::unpack(const Chunk& chunk, float* target, float* y) const {
  const int64_t channels = convolution_.out_channels, stacked = width_ > 1 ? 1 : chunk.samples, factor = finish_.pool ? 2 : 1;
  const Pair size{output_.height / factor, output_.width / factor};
  const int64_t pixels = size.height * size.width, rows = chunk.rows / factor;
  for (int64_t channel = chunk.first; channel < chunk.last; ++channel)
    for (int64_t sample = 0; sample < stacked; ++sample) {
      float* from = target + ((channel - chunk.first) * target_plane_ + sample * height_ * pitch_) * width_;
      float* to = y + ((chunk.sample + sample) * channels + channel) * pixels + chunk.row / factor * size.width;
      float* const pooled = width_ > 1 ? from : to;
      for (int64_t row = 0; finish_.pool && row < rows; ++row)
        kernels_.pool(from + 2 * row * pitch_ * width_, pitch_ * width_, size.width, width_, pooled + row * size.width * width_);
      if (width_ > 1)
        kernels_.unpack({chunk.samples, width_, channels * pixels, rows * size.width, finish_.pool ? nullptr : target_place_.data()}, from, to);
      else if (!finish_.pool)
        kernels_.copy_rows(from, pitch_, rows, size.width, to, size.width);
    }
}

int64_t PlannedConvolution::bytes() const {
  return static_cast<int64_t>((begins_.size() + offsets_.size()) * sizeof(int32_t) + (values_.size() + bias_.size()) * sizeof(float));
}

}  // namespace truesparse
