#include "top_k.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace truesparse {
namespace {

constexpr int64_t segment = 2048;  // entries looked at in one go
constexpr int64_t buckets = 65536;

// Magnitudes by their exponent, from 2^-127 to 2^128, and the first 8 bits after it: buckets of numbers within 0.4 % of each other.
constexpr int bucket_shift = 52 - 8;
constexpr int64_t first_bucket = int64_t{1023 - 127} << 8;

int64_t bucket_of(double magnitude) {
  if (!(magnitude > 0)) return 0;
  int64_t bits;
  std::memcpy(&bits, &magnitude, sizeof bits);
  return std::clamp<int64_t>((bits >> bucket_shift) - first_bucket, 0, buckets - 1);
}

double least_of(int64_t bucket) {
  const int64_t bits = (bucket + first_bucket) << bucket_shift;
  double magnitude;
  std::memcpy(&magnitude, &bits, sizeof magnitude);
  return magnitude;
}

}  // namespace

TopK::TopK(int64_t k)
    : k_(std::max<int64_t>(k, 0)), capacity_(2 * k_ + 256 * segment), candidates_(k_ ? new Candidate[static_cast<size_t>(capacity_)] : nullptr) {}

void TopK::shrink(bool nearly) {
  if (!k_ || size_ < k_) return;
  Candidate* const all = candidates_.get();
  std::vector<uint32_t> tally(buckets);
  for (int64_t i = 0; i < size_; ++i) ++tally[bucket_of(all[i].magnitude)];
  int64_t last = buckets - 1, better = 0;  // the bucket of the k-th best, and how many are in better ones
  for (; better + tally[last] < k_; --last) better += tally[last];
  if (last > 0) {
    const double least = least_of(last);
    int64_t kept = 0;
    for (int64_t i = 0; i < size_; ++i) {
      all[kept] = all[i];  // and overwritten by the next, unless kept
      kept += all[i].magnitude >= least;
    }
    size_ = kept;
    bound_ = {least, std::numeric_limits<int64_t>::max()};
    bounded_ = true;
    if (nearly && kept - k_ <= (capacity_ - k_) / 4) return;
  }
  std::partition(all, all + size_, [last](const Candidate& candidate) { return bucket_of(candidate.magnitude) > last; });
  std::nth_element(all + better, all + (k_ - 1), all + size_);
  size_ = k_;
  bound_ = all[k_ - 1];
  bounded_ = true;
}

template <class T>
void TopK::push(const T* gradients, int64_t row_start, int64_t rows, int64_t columns, const int32_t* indptr, const int32_t* indices,
                int64_t threads) {
  if (!k_) return;
  const Kernels<T>& k = kernels<T>(current_isa());
  const int64_t total = rows * columns;
  for (int64_t begin = 0, end; begin < total; begin = end) {
    if (capacity_ - size_ < (capacity_ - k_) / 4) shrink(true);
    end = std::min(total, begin + capacity_ - size_);  // there is room if all of them are large
    std::atomic<int64_t> size{size_};
    constexpr int64_t chunk = 16 * segment;
    parallel_for((end - begin + chunk - 1) / chunk, threads, [&](int64_t, int64_t item) {
      int32_t found[segment];
      Candidate large[segment];
      const int64_t last = std::min(end, begin + (item + 1) * chunk);
      for (int64_t i = begin + item * chunk, count; i < last; i += count) {
        const int64_t row = row_start + i / columns, column = i % columns;
        count = std::min({segment, columns - column, last - i});
        int64_t hits = count;
        // Below the worst known magnitude nothing can enter. While NaN (-1) is the worst, everything is looked at.
        if (bounded_ && bound_.magnitude >= 0) hits = k.scan(gradients + i, count, static_cast<T>(bound_.magnitude), found);
        else std::iota(found, found + count, 0);
        if (!hits) continue;
        const int32_t *p = indices + indptr[row], *const row_end = indices + indptr[row + 1];
        p = std::lower_bound(p, row_end, column);
        int64_t entering = 0;
        for (int64_t hit = 0; hit < hits; ++hit) {
          while (p < row_end && *p < column + found[hit]) ++p;
          if (p < row_end && *p == column + found[hit]) continue;
          const double magnitude = std::fabs(static_cast<double>(gradients[i + found[hit]]));
          const Candidate candidate{std::isnan(magnitude) ? -1.0 : magnitude, row * columns + column + found[hit]};
          large[entering] = candidate;
          entering += !bounded_ || candidate < bound_;
        }
        std::copy(large, large + entering, candidates_.get() + size.fetch_add(entering));
      }
    });
    size_ = size;
  }
}

int64_t TopK::result(int64_t* keys) {
  shrink(false);
  std::transform(candidates_.get(), candidates_.get() + size_, keys, [](const Candidate& candidate) { return candidate.key; });
  return size_;
}

template void TopK::push<float>(const float*, int64_t, int64_t, int64_t, const int32_t*, const int32_t*, int64_t);
template void TopK::push<double>(const double*, int64_t, int64_t, int64_t, const int32_t*, const int32_t*, int64_t);

}  // namespace truesparse
