#include "top_k.h"

#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace truesparse {

TopK::TopK(int64_t k) : k_(std::max<int64_t>(k, 0)), capacity_(static_cast<size_t>(2 * k_ + 1024)) {}

void TopK::shrink() {
  if (!k_ || candidates_.size() < static_cast<size_t>(k_)) return;
  const auto last = candidates_.begin() + (k_ - 1);
  std::nth_element(candidates_.begin(), last, candidates_.end());
  worst_ = *last;
  bounded_ = true;
  candidates_.resize(static_cast<size_t>(k_));
}

void TopK::add(double magnitude, int64_t key) {
  const Candidate candidate{std::isnan(magnitude) ? -1.0 : magnitude, key};
  if (bounded_ && !(candidate < worst_)) return;
  candidates_.push_back(candidate);
  if (candidates_.size() >= capacity_) shrink();
}

template <class T>
void TopK::push(const T* gradients, int64_t row_start, int64_t rows, int64_t columns, const int32_t* indptr, const int32_t* indices) {
  if (!k_) return;
  const Kernels<T>& k = kernels<T>(current_isa());
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = gradients + r * columns;
    const int64_t first_key = (row_start + r) * columns;
    int64_t p = indptr[row_start + r];
    const int64_t end = indptr[row_start + r + 1];
    for (int64_t c = 0; c < columns; ++c) {
      // Below the worst known magnitude nothing can enter. While NaN (-1) is the worst, everything is looked at.
      if (bounded_ && worst_.magnitude >= 0) c = k.scan(row, c, columns, static_cast<T>(worst_.magnitude));
      if (c >= columns) break;
      if (p < end && indices[p] < c) p = std::lower_bound(indices + p, indices + end, c) - indices;
      if (p < end && indices[p] == c) continue;
      add(std::fabs(static_cast<double>(row[c])), first_key + c);
    }
  }
}

int64_t TopK::result(int64_t* keys) {
  shrink();
  int64_t* end = std::transform(candidates_.begin(), candidates_.end(), keys, [](const Candidate& candidate) { return candidate.key; });
  std::sort(keys, end);
  return end - keys;
}

template void TopK::push<float>(const float*, int64_t, int64_t, int64_t, const int32_t*, const int32_t*);
template void TopK::push<double>(const double*, int64_t, int64_t, int64_t, const int32_t*, const int32_t*);

}  // namespace truesparse
