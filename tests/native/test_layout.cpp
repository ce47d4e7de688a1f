// Are connections sorted, cut and shared out as layout.h says?
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "kernels.h"
#include "layout.h"
#include "verbs.h"

namespace truesparse::testing {
namespace {

struct Shape {
  int64_t rows, columns;
  double density;
};

constexpr Shape shapes[] = {{0, 5, 0.5}, {1, 1, 1}, {7, 5, 0.5}, {3, 130, 0.2}, {131, 3, 0.3}, {67, 71, 0.1}, {40, 16, 0}, {9, 65, 1}};

}  // namespace

TEST_CASE("a block starts behind the connections to smaller columns") {
  Random random(1);
  for (const Shape& shape : shapes)
    for (const int64_t width : {1, 2, 7, 64, 200}) {
      const Topology t = random_topology(random, shape.rows, shape.columns, shape.density);
      const int64_t blocks = (t.columns + width - 1) / width;
      Indices starts = unwritten<int32_t>(std::max<int64_t>(0, blocks - 1) * t.rows), expected;
      block_starts(t.rows, t.indptr.data(), t.indices.data(), width, blocks, starts.data());
      for (int64_t block = 1; block < blocks; ++block)
        for (int64_t row = 0; row < t.rows; ++row) {
          const auto before = [&](int32_t column) { return column < block * width; };
          const auto own = t.indices.begin() + t.indptr[row], end = t.indices.begin() + t.indptr[row + 1];
          expected.push_back(static_cast<int32_t>(t.indptr[row] + std::count_if(own, end, before)));
        }
      CAPTURE(t.rows);
      CAPTURE(t.columns);
      CAPTURE(width);
      CHECK(difference(starts, expected) == "");
    }
}

TEST_CASE("blocks of the largest columns") {
  const int64_t columns = (int64_t{1} << 31) - 1;
  const Indices indptr{0, 4}, indices{0, (1 << 30) - 1, 1 << 30, static_cast<int32_t>(columns - 1)};
  for (const int64_t width : {int64_t{(1 << 30) - 1}, int64_t{1} << 30, columns}) {
    const int64_t blocks = (columns + width - 1) / width;
    Indices starts = unwritten<int32_t>(blocks - 1), expected;
    block_starts(1, indptr.data(), indices.data(), width, blocks, starts.data());
    for (int64_t block = 1; block < blocks; ++block)
      expected.push_back(static_cast<int32_t>(std::count_if(indices.begin(), indices.end(), [&](int32_t column) { return column < block * width; })));
    CHECK(difference(starts, expected) == "");
  }
}

TEST_CASE("a transpose is a stable sort by key") {
  Random random(2);
  for (const Shape& shape : shapes)
    for (const int64_t factor : {1, 3})
      for (const bool keyed : {false, true}) {
        const Topology t = random_topology(random, shape.rows, shape.columns, shape.density);
        const int64_t groups = keyed && t.rows % 3 == 0 ? 3 : 1, rows_per_group = std::max<int64_t>(1, t.rows / groups), targets = keyed ? 11 : t.columns;
        Indices keys(keyed ? groups * t.columns : 0);
        for (int32_t& key : keys) key = static_cast<int32_t>(below(random, targets));
        Indices indptr = unwritten<int32_t>(targets + 1), indices = unwritten<int32_t>(t.nnz()), permutation = unwritten<int32_t>(t.nnz());
        transpose(t.rows, t.columns, t.indptr.data(), t.indices.data(), targets, keyed ? keys.data() : nullptr, rows_per_group, factor, indptr.data(),
                  indices.data(), permutation.data());

        Indices rows(t.nnz()), key_of(t.nnz()), order(t.nnz()), expected_indices, expected_indptr(targets + 1, 0);
        for (int64_t row = 0; row < t.rows; ++row) std::fill(rows.begin() + t.indptr[row], rows.begin() + t.indptr[row + 1], static_cast<int32_t>(row));
        for (int64_t p = 0; p < t.nnz(); ++p) key_of[p] = keyed ? keys[rows[p] / rows_per_group * t.columns + t.indices[p]] : t.indices[p];
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key_of[a] < key_of[b]; });
        for (const int32_t p : order) expected_indices.push_back(static_cast<int32_t>(rows[p] * factor + t.indices[p] % factor));
        for (int64_t target = 0; target <= targets; ++target)
          expected_indptr[target] = static_cast<int32_t>(std::count_if(key_of.begin(), key_of.end(), [&](int32_t key) { return key < target; }));
        CAPTURE(t.rows);
        CAPTURE(t.columns);
        CAPTURE(factor);
        CAPTURE(keyed);
        CHECK(difference(indptr, expected_indptr) == "");
        CHECK(difference(indices, expected_indices) == "");
        CHECK(difference(permutation, order) == "");
      }
}

TEST_CASE("a partition covers the rows in parts of about equal work") {
  Random random(3);
  for (const Shape& shape : shapes)
    for (const int64_t parts : {1, 2, 3, 16, 1000}) {
      const Topology t = random_topology(random, std::max<int64_t>(1, shape.rows), shape.columns, shape.density);
      const std::vector<int64_t> cuts = partition(t.rows, t.indptr.data(), parts);
      CAPTURE(t.rows);
      CAPTURE(parts);
      REQUIRE(cuts.size() >= 2);
      CHECK(static_cast<int64_t>(cuts.size()) <= parts + 1);
      CHECK(cuts.front() == 0);
      CHECK(cuts.back() == t.rows);
      const int64_t a_row_costs = 8, longest = t.columns + a_row_costs, all = t.nnz() + t.rows * a_row_costs;
      for (size_t part = 0; part + 1 < cuts.size(); ++part) {
        CHECK(cuts[part] < cuts[part + 1]);
        CHECK(t.indptr[cuts[part + 1]] - t.indptr[cuts[part]] <= all / parts + longest);
      }
    }
}

TEST_CASE_TEMPLATE("gather puts values in the order of the permutation", T, float, double) {
  Random random(4);
  for (const int64_t count : {0, 1, 7, 15, 16, 17, 1000, 70000}) {
    const std::vector<T> values = fractions<T>(random, count);
    Indices permutation(count);
    std::iota(permutation.begin(), permutation.end(), 0);
    std::shuffle(permutation.begin(), permutation.end(), random);
    std::vector<T> expected;
    for (const int32_t p : permutation) expected.push_back(values[p]);
    for (const std::string& isa : isas()) {
      use_isa(isa);
      std::vector<T> gathered = unwritten<T>(count);
      kernels<T>(current_isa()).gather(values.data(), permutation.data(), count, gathered.data());
      CAPTURE(count);
      CAPTURE(isa);
      CHECK(difference(gathered, expected) == "");
    }
  }
}

}  // namespace truesparse::testing
