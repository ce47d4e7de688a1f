// Do spmm and backward compute what a naive loop computes, and the same for any number of threads?
#include <doctest/doctest.h>

#include "verbs.h"

namespace truesparse::testing {
namespace {

// With rows of 2 connections a block or so there are many blocks; with 1000 there is one.
constexpr int64_t connections_per_block[] = {2, 8, 1000};

// A type of arithmetic and a type of samples.
template <class T, class S>
struct Types {
  using Sum = T;
  using Sample = S;
};
#define ALL_TYPES Types<float, float>, Types<double, double>, Types<float, Bfloat16>

template <class T, class S>
void check_exact(const Layer& layer, Random& random) {
  const Numbers<T, S> numbers = numbers_for<T, S>(layer, random, whole_numbers<T>, whole_numbers<S>);
  const std::vector<double> plain = expected_spmm(layer, numbers, false), biased = expected_spmm(layer, numbers, true);
  const Gradients<double, double> expected = expected_backward(layer, numbers);
  for (const std::string& isa : isas()) {
    use_isa(isa);
    for (const int64_t threads : {1, 2}) {
      CAPTURE(isa);
      CAPTURE(threads);
      CHECK(difference(spmm(layer, numbers, false, threads), plain) == "");
      CHECK(difference(spmm(layer, numbers, true, threads), biased) == "");
      if (layer.is_matrix && layer.size.height * layer.size.width == 1) CHECK(difference(spmm(layer, numbers, true, threads, true), biased) == "");
      for (int wanted = 0; wanted < 8; ++wanted) {
        const Need need{(wanted & 1) != 0, (wanted & 2) != 0, (wanted & 4) != 0};
        CAPTURE(wanted);
        const Gradients<T, S> actual = backward(layer, numbers, need, threads);
        if (need.dvalues) CHECK(difference(actual.dvalues, expected.dvalues) == "");
        if (need.dx) CHECK(difference(actual.dx, expected.dx) == "");
        if (need.dbias) CHECK(difference(actual.dbias, expected.dbias) == "");
      }
    }
  }
}

template <class T, class S>
void check_threads(const Layer& layer, Random& random) {
  const Numbers<T, S> numbers = numbers_for<T, S>(layer, random, fractions<T>, fractions<S>);
  for (const std::string& isa : isas()) {
    use_isa(isa);
    CAPTURE(isa);
    const std::vector<S> y = spmm(layer, numbers, true, 1);
    const Gradients<T, S> gradients = backward(layer, numbers, {true, true, true}, 1);
    for (const int64_t threads : {2, 5}) {
      CAPTURE(threads);
      CHECK(difference(spmm(layer, numbers, true, threads), y) == "");
      const Gradients<T, S> actual = backward(layer, numbers, {true, true, true}, threads);
      CHECK(difference(actual.dvalues, gradients.dvalues) == "");
      CHECK(difference(actual.dx, gradients.dx) == "");
      CHECK(difference(actual.dbias, gradients.dbias) == "");
    }
  }
}

template <class Both>
void check(const Layer& layer, Random& random) {
  check_exact<typename Both::Sum, typename Both::Sample>(layer, random);
  check_threads<typename Both::Sum, typename Both::Sample>(layer, random);
}

template <class Both>
void check_matrix(int64_t rows, int64_t columns, double density, int64_t batch, int64_t connections, Pair size = {1, 1}) {
  CAPTURE(rows);
  CAPTURE(columns);
  CAPTURE(density);
  CAPTURE(batch);
  CAPTURE(connections);
  Random random(static_cast<uint64_t>(rows * 1000 + columns + batch));
  const Convolution matrix{columns, rows, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1};
  check<Both>(Layer(true, matrix, size, batch, random_topology(random, rows, columns, density), connections), random);
}

struct Example {
  const char* name;
  Convolution convolution;
  Pair size;
};

constexpr Example examples[] = {
    {"3x3", {5, 6, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, {9, 7}},
    {"no padding", {4, 3, {3, 3}, {1, 1}, {0, 0}, {1, 1}, 1}, {8, 11}},
    {"1x1", {7, 9, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1}, {5, 5}},
    {"1x1 stride", {4, 5, {1, 1}, {2, 2}, {0, 0}, {1, 1}, 1}, {7, 8}},
    {"1x1 padded", {4, 5, {1, 1}, {1, 1}, {2, 1}, {1, 1}, 1}, {4, 3}},
    {"stride", {3, 8, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 1}, {13, 10}},
    {"stride longer than the kernel", {3, 2, {2, 1}, {4, 3}, {0, 0}, {1, 1}, 1}, {11, 10}},
    {"uneven", {3, 4, {2, 5}, {3, 1}, {0, 2}, {2, 1}, 1}, {11, 9}},
    {"dilation", {4, 4, {3, 3}, {1, 1}, {2, 2}, {2, 2}, 1}, {10, 10}},
    {"dilation and stride", {2, 3, {3, 2}, {2, 3}, {1, 2}, {3, 2}, 1}, {12, 9}},
    {"groups", {6, 9, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 3}, {6, 6}},
    {"depthwise", {8, 16, {3, 3}, {2, 1}, {1, 1}, {1, 1}, 8}, {9, 9}},
    {"one pixel", {20, 10, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, {1, 1}},
    {"wide padding", {2, 3, {3, 3}, {1, 1}, {4, 4}, {1, 1}, 1}, {3, 5}},
    {"large kernel", {2, 3, {7, 7}, {2, 2}, {3, 3}, {1, 1}, 1}, {20, 17}},
};

template <class Both>
void check_convolution(const Example& example, double density, int64_t batch, int64_t connections) {
  const Convolution& c = example.convolution;
  CAPTURE(example.name);
  CAPTURE(density);
  CAPTURE(batch);
  CAPTURE(connections);
  Random random(static_cast<uint64_t>(c.in_channels * 1000 + c.out_channels + batch));
  const Topology topology = random_topology(random, c.out_channels, c.channels_per_group() * c.taps(), density);
  check<Both>(Layer(false, c, example.size, batch, topology, connections), random);
}

}  // namespace

TEST_CASE_TEMPLATE("matrix", Both, ALL_TYPES) {
  struct Shape {
    int64_t rows, columns;
    double density;
  };
  const Shape shapes[] = {{1, 1, 1}, {7, 5, 0.5}, {3, 130, 0.2}, {131, 3, 0.3}, {67, 71, 0.1}, {33, 300, 0.03}, {40, 16, 0}, {9, 65, 1}};
  int64_t turn = 0;
  for (const int64_t batch : {0, 1, 2, 15, 16, 17, 127, 300})
    for (const Shape& shape : shapes) check_matrix<Both>(shape.rows, shape.columns, shape.density, batch, connections_per_block[turn++ % 3]);
}

TEST_CASE_TEMPLATE("pixels are samples", Both, ALL_TYPES) {
  check_matrix<Both>(13, 30, 0.3, 2, 8, {9, 5});
  check_matrix<Both>(30, 13, 0.3, 5, 2, {3, 4});
  check_matrix<Both>(7, 5, 0.5, 1, 1000, {1, 2});
}

TEST_CASE_TEMPLATE("convolution", Both, ALL_TYPES) {
  int64_t turn = 0;
  for (const Example& example : examples)
    for (const int64_t batch : {0, 1, 2, 15, 16, 17}) check_convolution<Both>(example, 0.3, batch, connections_per_block[turn++ % 3]);
  for (const double density : {0.0, 1.0}) check_convolution<Both>(examples[0], density, 3, 8);
}

TEST_CASE_TEMPLATE("convolution of a large batch", Both, ALL_TYPES) {
  for (const int64_t batch : {127, 300}) {
    check_convolution<Both>({"3x3", {3, 4, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, {4, 3}}, 0.3, batch, 8);
    check_convolution<Both>({"stride", {4, 3, {2, 2}, {2, 1}, {0, 1}, {1, 1}, 1}, {4, 3}}, 0.3, batch, 8);
  }
}

// More than one chunk of features, of values, of rows whose sums are kept, of tiles whose dy is packed together.
TEST_CASE_TEMPLATE("large matrix", Both, ALL_TYPES) {
  check_matrix<Both>(300, 900, 0.1, 17, 8);
  check_matrix<Both>(1300, 300, 0.01, 140, 8);
  check_matrix<Both>(2500, 40, 0.04, 300, 2);
  check_matrix<Both>(40, 2500, 0.04, 300, 2);
  check_matrix<Both>(12, 900, 0.9, 70, 1000);  // runs longer than the longest
}

// More than one band of rows in a chunk.
TEST_CASE_TEMPLATE("large convolution", Both, ALL_TYPES) {
  check_convolution<Both>({"many channels", {40, 30, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, {40, 33}}, 0.02, 17, 8);
  check_convolution<Both>({"groups", {40, 30, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 10}, {41, 33}}, 0.1, 3, 8);
}

}  // namespace truesparse::testing
