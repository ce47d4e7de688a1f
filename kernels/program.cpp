#include "program.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "workspace.h"

namespace truesparse {
namespace {

void copy_axis(const Copy& c, size_t axis, const float* from, float* to) {
  const int64_t extent = c.extents[axis], across = c.from_strides[axis], step = c.to_strides[axis];
  if (axis + 1 < c.extents.size()) {
    for (int64_t i = 0; i < extent; ++i) copy_axis(c, axis + 1, from + i * across, to + i * step);
  } else if (across == 1 && step == 1) {
    std::memcpy(to, from, extent * sizeof(float));
  } else {
    for (int64_t i = 0; i < extent; ++i) to[i * step] = from[i * across];
  }
}

// In sixteen sums, so that none waits for the one before.
template <class Term>
float sum_of(int64_t count, Term&& term) {
  constexpr int64_t together = 16;
  float sums[together] = {};
  int64_t i = 0;
  for (; i + together <= count; i += together)
    for (int64_t j = 0; j < together; ++j) sums[j] += term(i + j);
  for (int64_t j = 0; i + j < count; ++j) sums[j] += term(i + j);
  for (int64_t half = together / 2; half; half /= 2)
    for (int64_t j = 0; j < half; ++j) sums[j] += sums[j + half];
  return sums[0];
}

}  // namespace

void copy(const Copy& c, const float* from, float* to) {
  if (c.zeros) std::memset(to, 0, c.size * sizeof(float));
  copy_axis(c, 0, from + c.from_start, to + c.to_start);
}

void mean(const float* x, int64_t rows, int64_t count, float* y) {
  for (int64_t row = 0; row < rows; ++row, x += count)
    y[row] = sum_of(count, [x](int64_t i) { return x[i]; }) / static_cast<float>(count);
}

void small_product(const float* weight, const float* bias, bool relu, int64_t rows, int64_t columns, int64_t batch, const float* x, float* y) {
  for (int64_t sample = 0; sample < batch; ++sample, x += columns)
    for (int64_t row = 0; row < rows; ++row, ++y) {
      const float* own = weight + row * columns;
      const float sum = sum_of(columns, [x, own](int64_t i) { return own[i] * x[i]; }) + (bias ? bias[row] : 0.0f);
      *y = relu && sum <= 0.0f ? 0.0f : sum;  // NaN stays
    }
}

void Program::add(Call call, int64_t x, int64_t added, int64_t y) {
  const int64_t places = outside_ + static_cast<int64_t>(offsets_.size());
  for (const int64_t place : {x, y, added < 0 ? y : added})
    if (place < 0 || place >= places) throw std::out_of_range("there are " + std::to_string(places) + " places, got number " + std::to_string(place));
  steps_.push_back({std::move(call), x, added, y});
}

void Program::run(const std::vector<uintptr_t>& addresses) const {
  if (static_cast<int64_t>(addresses.size()) != outside_)
    throw std::invalid_argument("expected " + std::to_string(outside_) + " addresses, got " + std::to_string(addresses.size()));
  const Workspace memory(lines<float>(size_));
  const auto at = [&](int64_t place) {
    return place < outside_ ? reinterpret_cast<float*>(addresses[place]) : memory.as<float>() + offsets_[place - outside_];
  };
  for (const Step& step : steps_) step.call(at(step.x), step.added < 0 ? nullptr : at(step.added), at(step.y));
}

}  // namespace truesparse
