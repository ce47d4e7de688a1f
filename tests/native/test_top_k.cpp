// Are the largest empty positions the first of all, sorted?
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "cases.h"
#include "top_k.h"

namespace truesparse::testing {
namespace {

template <class T>
std::vector<int64_t> top_k(const Topology& t, const std::vector<T>& gradients, int64_t k, int64_t rows_per_slab, int64_t threads) {
  TopK best(k);
  for (int64_t row = 0; row < t.rows; row += rows_per_slab) {
    const int64_t rows = std::min(rows_per_slab, t.rows - row);
    const std::vector<T> slab(gradients.begin() + row * t.columns, gradients.begin() + (row + rows) * t.columns);
    best.push(slab.data(), row, rows, t.columns, t.indptr.data(), t.indices.data(), threads);
  }
  std::vector<int64_t> keys = unwritten<int64_t>(std::min(k, t.rows * t.columns - t.nnz()));
  REQUIRE(best.result(keys.data()) == static_cast<int64_t>(keys.size()));
  std::sort(keys.begin(), keys.end());
  return keys;
}

template <class T>
std::vector<int64_t> expected_top_k(const Topology& t, const std::vector<T>& gradients, int64_t k) {
  std::vector<int64_t> keys;
  for (int64_t row = 0; row < t.rows; ++row)
    for (int64_t column = 0; column < t.columns; ++column)
      if (!std::count(t.indices.begin() + t.indptr[row], t.indices.begin() + t.indptr[row + 1], column)) keys.push_back(row * t.columns + column);
  const auto size = [&](int64_t key) { return std::isnan(gradients[key]) ? T(-1) : std::fabs(gradients[key]); };
  std::stable_sort(keys.begin(), keys.end(), [&](int64_t a, int64_t b) { return size(a) > size(b); });
  keys.resize(std::min<size_t>(keys.size(), k));
  std::sort(keys.begin(), keys.end());
  return keys;
}

// Many ties; where `strange`, NaN and infinity too.
template <class T>
std::vector<T> gradients_of(Random& random, int64_t count, bool strange) {
  std::vector<T> gradients = fractions<T>(random, count);
  if (strange)
    for (T& gradient : gradients) {
      const int64_t kind = below(random, 8);
      if (kind < 3) gradient = kind ? std::numeric_limits<T>::infinity() * (kind == 1 ? 1 : -1) : std::numeric_limits<T>::quiet_NaN();
    }
  return gradients;
}

}  // namespace

TEST_CASE_TEMPLATE("top k", T, float, double) {
  struct Shape {
    int64_t rows, columns;
    double density;
  };
  const Shape shapes[] = {{1, 1, 0}, {1, 1, 1}, {5, 3, 0.4}, {9, 63, 0.2}, {40, 64, 0}, {31, 65, 0.1}, {23, 200, 0.05}, {4, 17, 1}};
  Random random(5);
  for (const Shape& shape : shapes)
    for (const bool strange : {false, true}) {
      const Topology t = random_topology(random, shape.rows, shape.columns, shape.density);
      const std::vector<T> gradients = gradients_of<T>(random, t.rows * t.columns, strange);
      for (const int64_t k : {0, 1, 5, 300, 100000}) {
        const std::vector<int64_t> expected = expected_top_k(t, gradients, k);
        for (const std::string& isa : isas())
          for (const int64_t rows_per_slab : {1, 7, 1000}) {
            use_isa(isa);
            CAPTURE(t.rows);
            CAPTURE(t.columns);
            CAPTURE(strange);
            CAPTURE(k);
            CAPTURE(isa);
            CAPTURE(rows_per_slab);
            CHECK(difference(top_k(t, gradients, k, rows_per_slab, rows_per_slab == 7 ? 1 : 3), expected) == "");
          }
      }
    }
}

}  // namespace truesparse::testing
