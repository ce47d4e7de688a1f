// Where neighbouring rows share their columns: what a naive loop computes, and the same for any number of threads?
#include <doctest/doctest.h>

#include "shared_rows.h"
#include "verbs.h"

namespace truesparse::testing {
namespace {

template <class T, class S>
struct Types {
  using Sum = T;
  using Sample = S;
};
#define ALL_TYPES Types<float, float>, Types<double, double>, Types<float, Bfloat16>

// Each row `alike` times.
Topology repeated(const Topology& of_group, int64_t alike) {
  Topology topology{of_group.rows * alike, of_group.columns, {0}, {}};
  for (int64_t row = 0; row < topology.rows; ++row) {
    for (int64_t p = of_group.indptr[row / alike]; p < of_group.indptr[row / alike + 1]; ++p) topology.indices.push_back(of_group.indices[p]);
    topology.indptr.push_back(static_cast<int32_t>(topology.indices.size()));
  }
  topology.indptr.shrink_to_fit();
  topology.indices.shrink_to_fit();
  return topology;
}

template <class T, class S>
struct Results {
  std::vector<S> y;
  Gradients<T, S> gradients;
};

template <class T, class S>
Results<T, S> results(const Layer& layer, int64_t alike, const Numbers<T, S>& n, Need need, int64_t threads) {
  const Topology& topology = layer.forward.topology;
  const SharedRows matrix{topology.rows, topology.columns, topology.indptr.data(), topology.indices.data(), alike};
  const int64_t pixels = layer.size.height * layer.size.width, batch = layer.batch * pixels;
  Results<T, S> r{unwritten<S>(layer.outputs()),
                  {unwritten<T>(need.dvalues ? layer.nnz() : 0), unwritten<S>(need.dx ? layer.inputs() : 0), unwritten<T>(need.dbias ? topology.rows : 0)}};
  shared_rows_spmm(matrix, n.values.data(), n.bias.data(), n.x.data(), r.y.data(), batch, pixels, threads);
  shared_rows_backward(matrix, need.dx ? n.values.data() : nullptr, n.dy.data(), need.dvalues ? n.x.data() : nullptr,
                       need.dvalues ? r.gradients.dvalues.data() : nullptr, need.dx ? r.gradients.dx.data() : nullptr,
                       need.dbias ? r.gradients.dbias.data() : nullptr, batch, pixels, threads);
  return r;
}

template <class Both>
void check(int64_t groups, int64_t alike, int64_t columns, double density, int64_t batch, Pair size = {1, 1}) {
  using T = typename Both::Sum;
  using S = typename Both::Sample;
  CAPTURE(groups);
  CAPTURE(alike);
  CAPTURE(columns);
  CAPTURE(density);
  CAPTURE(batch);
  Random random(static_cast<uint64_t>(groups * 1000 + columns + batch));
  const Convolution pixels{columns, groups * alike, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1};
  const Layer layer(true, pixels, size, batch, repeated(random_topology(random, groups, columns, density), alike), 8);
  const Numbers<T, S> whole = numbers_for<T, S>(layer, random, whole_numbers<T>, whole_numbers<S>);
  const Numbers<T, S> thirds = numbers_for<T, S>(layer, random, fractions<T>, fractions<S>);
  const std::vector<double> y = expected_spmm(layer, whole, true);
  const Gradients<double, double> expected = expected_backward(layer, whole);
  for (const std::string& isa : isas()) {
    use_isa(isa);
    CAPTURE(isa);
    const Results<T, S> alone = results(layer, alike, thirds, {true, true, true}, 1);
    for (const int64_t threads : {1, 2, 5}) {
      CAPTURE(threads);
      for (const int wanted : {1, 2, 4, 7}) {
        const Need need{(wanted & 1) != 0, (wanted & 2) != 0, (wanted & 4) != 0};
        CAPTURE(wanted);
        const Results<T, S> actual = results(layer, alike, whole, need, threads);
        CHECK(difference(actual.y, y) == "");
        if (need.dvalues) CHECK(difference(actual.gradients.dvalues, expected.dvalues) == "");
        if (need.dx) CHECK(difference(actual.gradients.dx, expected.dx) == "");
        if (need.dbias) CHECK(difference(actual.gradients.dbias, expected.dbias) == "");
      }
      const Results<T, S> again = results(layer, alike, thirds, {true, true, true}, threads);
      CHECK(difference(again.y, alone.y) == "");
      CHECK(difference(again.gradients.dvalues, alone.gradients.dvalues) == "");
      CHECK(difference(again.gradients.dx, alone.gradients.dx) == "");
      CHECK(difference(again.gradients.dbias, alone.gradients.dbias) == "");
    }
  }
}

}  // namespace

TEST_CASE_TEMPLATE("rows that share their columns", Both, ALL_TYPES) {
  struct Shape {
    int64_t groups, alike, columns;
    double density;
  };
  const Shape shapes[] = {{1, 8, 1, 1}, {2, 64, 7, 0.5}, {5, 8, 130, 0.2}, {3, 16, 71, 0.9}, {4, 32, 16, 0.3}, {3, 24, 33, 0}, {2, 8, 300, 1}};
  for (const Shape& s : shapes)
    for (const int64_t batch : {0, 1, 3, 17, 127}) check<Both>(s.groups, s.alike, s.columns, s.density, batch);
}

TEST_CASE_TEMPLATE("pixels of images are samples of rows that share their columns", Both, ALL_TYPES) {
  check<Both>(3, 16, 30, 0.3, 2, {9, 5});
  check<Both>(2, 8, 13, 0.3, 5, {3, 4});
  check<Both>(1, 32, 5, 0.5, 1, {1, 2});
}

// More than one chunk of features, more columns than stay near.
TEST_CASE_TEMPLATE("large matrix of rows that share their columns", Both, ALL_TYPES) {
  check<Both>(3, 32, 700, 0.4, 17);
  check<Both>(20, 8, 300, 0.1, 150);
}

}  // namespace truesparse::testing
