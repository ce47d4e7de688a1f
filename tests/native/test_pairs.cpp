// Do pairs give the product, in blocks of any width, in any number of parts, on every instruction set?
#include <doctest/doctest.h>

#include <algorithm>

#include "cases.h"
#include "pairs.h"

namespace truesparse::testing {
namespace {

struct Shape {
  int64_t rows, columns;
  double density;
};

constexpr Shape shapes[] = {{0, 5, 0.5}, {3, 0, 0}, {1, 1, 1}, {7, 5, 0.5}, {3, 130, 0.2}, {33, 3, 0.3}, {37, 71, 0.1}, {20, 16, 0}, {16, 64, 1}};

void hold(Random& random, const Shape& shape, int64_t abreast, int64_t width, int64_t parts, int64_t batch, bool relu, bool biased) {
  const Topology t = random_topology(random, shape.rows, shape.columns, shape.density);
  const std::vector<float> values = whole_numbers<float>(random, t.nnz()), x = whole_numbers<float>(random, batch * t.columns);
  const std::vector<float> bias = whole_numbers<float>(random, t.rows);
  const PairShape extents{t.rows, t.columns, abreast, width, parts};
  PairArrays arrays = lay_out_pairs(extents, t.indptr.data(), t.indices.data(), values.data());
  arrays.starts.shrink_to_fit();
  arrays.steps.shrink_to_fit();
  arrays.members.shrink_to_fit();
  arrays.places.shrink_to_fit();
  arrays.values.shrink_to_fit();
  const Pairs pairs{extents, arrays.starts.data(), arrays.steps.data(), arrays.members.data(), arrays.places.data(), arrays.values.data()};
  std::vector<double> expected;
  for (int64_t sample = 0; sample < batch; ++sample)
    for (int64_t row = 0; row < t.rows; ++row) {
      double sum = biased ? bias[row] : 0;
      for (int32_t p = t.indptr[row]; p < t.indptr[row + 1]; ++p) sum += values[p] * x[sample * t.columns + t.indices[p]];
      expected.push_back(relu ? std::max(sum, 0.0) : sum);
    }
  for (const int64_t threads : {1, 2}) {
    std::vector<float> y = unwritten<float>(batch * t.rows);
    pairs_spmm(pairs, biased ? bias.data() : nullptr, relu, x.data(), y.data(), batch, threads);
    CAPTURE(t.rows);
    CAPTURE(t.columns);
    CAPTURE(abreast);
    CAPTURE(width);
    CAPTURE(parts);
    CAPTURE(batch);
    CHECK(difference(y, expected) == "");
  }
}

}  // namespace

TEST_CASE("pairs give the product") {
  for (const std::string& isa : isas()) {
    use_isa(isa);
    Random random(1);
    bool turn = false;
    for (const Shape& shape : shapes)
      for (const int64_t abreast : {1, 2})
        for (const int64_t width : {5, 16, 100})
          for (const int64_t parts : {1, 3})
            for (const int64_t batch : {1, 17, 40, 70}) {
              hold(random, shape, abreast, width, parts, batch, turn, !turn || batch == 40);
              turn = !turn;
            }
  }
  use_isa("");
}

TEST_CASE("rows that share their columns load each once") {
  // Rows 0 and 2 have columns 0 to 7, rows 1 and 3 columns 8 to 15.
  const Indices indptr{0, 8, 16, 24, 32}, indices = [] {
    Indices all;
    for (const int32_t first : {0, 8, 0, 8})
      for (int32_t column = first; column < first + 8; ++column) all.push_back(column);
    return all;
  }();
  const std::vector<float> values(32, 1);
  const PairArrays arrays = lay_out_pairs({4, 16, 1, 16, 1}, indptr.data(), indices.data(), values.data());
  CHECK(arrays.steps == std::vector<uint16_t>{8, 0, 8, 0});
  CHECK(arrays.members == Indices{0, 2, 1, 3});
  CHECK(arrays.places.size() == 16);
  CHECK(arrays.values.size() == 32);
}

}  // namespace truesparse::testing
