// Do the steps of a program, and what follows a layer, give what they should, and touch nothing else?
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "cases.h"
#include "epilogue.h"
#include "program.h"

namespace truesparse::testing {
namespace {

uintptr_t address(const std::vector<float>& numbers) { return reinterpret_cast<uintptr_t>(numbers.data()); }

float infinity() { return std::numeric_limits<float>::infinity(); }

}  // namespace

TEST_CASE("epilogues add, then bend, then limit") {
  for (const std::string& isa : isas()) {
    use_isa(isa);
    Random random(1);
    for (const int64_t count : {0, 1, 3, 8, 15, 16, 67, 40000})
      for (const bool adds : {false, true})
        for (const bool gelu : {false, true})
          for (const int64_t threads : {1, 3}) {
            std::vector<float> y = whole_numbers<float>(random, count), added = whole_numbers<float>(random, count);
            std::vector<double> expected(y.begin(), y.end());
            for (int64_t i = 0; i < count; ++i) {
              double& sum = expected[i];
              if (adds) sum += added[i];
              if (gelu) sum *= 0.5 * (1 + std::erf(sum / std::sqrt(2.0)));
              sum = std::clamp(sum, 0.0, 6.0);
            }
            finish({gelu, 0.0f, 6.0f}, adds ? added.data() : nullptr, y.data(), count, threads);
            for (int64_t i = 0; i < count; ++i) CHECK(std::abs(y[i] - expected[i]) <= 1e-5);
          }
  }
  use_isa("");
}

TEST_CASE("a program is its steps, in places that are given and in places of its own") {
  Random random(2);
  const std::vector<float> x = whole_numbers<float>(random, 24), weight = whole_numbers<float>(random, 2 * 12), bias = {1, -2};
  std::vector<float> y = unwritten<float>(2);
  Program program(2, {0, 16}, 32);
  // Every second number of x [2, 4, 3] in the middle, into the corner of [3, 4] that is else zero.
  const Copy box{1, 5, 12, true, {2, 2}, {12, 6}, {4, 1}};
  program.add([box](const float* from, const float*, float* to) { copy(box, from, to); }, 0, -1, 2);
  program.add([](const float* from, const float* added, float* to) { for (int i = 0; i < 12; ++i) to[i] = from[i] + added[i]; }, 2, 0, 3);
  program.add([&](const float* from, const float*, float* to) { small_product(weight.data(), bias.data(), true, 2, 12, 1, from, to); }, 3, -1, 1);
  program.run({address(x), address(y)});
  std::vector<double> sums(x.begin(), x.begin() + 12);
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) sums[5 + 4 * i + j] += x[1 + 12 * i + 6 * j];
  for (int row = 0; row < 2; ++row) {
    double sum = bias[row];
    for (int i = 0; i < 12; ++i) sum += weight[12 * row + i] * sums[i];
    CHECK(y[row] == std::max(sum, 0.0));
  }
  CHECK_THROWS_AS(program.run({address(x)}), std::invalid_argument);
  CHECK_THROWS_AS(program.add([](const float*, const float*, float*) {}, 4, -1, 0), std::out_of_range);
  CHECK_THROWS_AS(program.add([](const float*, const float*, float*) {}, 0, 4, 0), std::out_of_range);
}

TEST_CASE("means of any count, and small products whose NaN stays") {
  for (const int64_t count : {1, 2, 15, 16, 17, 64, 75}) {
    Random random(3);
    const std::vector<float> x = whole_numbers<float>(random, 3 * count);
    std::vector<float> y = unwritten<float>(3);
    mean(x.data(), 3, count, y.data());
    for (int64_t row = 0; row < 3; ++row) {
      double sum = 0;
      for (int64_t i = 0; i < count; ++i) sum += x[row * count + i];
      CHECK(y[row] == doctest::Approx(sum / static_cast<double>(count)));
    }
  }
  const std::vector<float> weight = {1, 1}, x = {NAN, infinity()};
  float y = 0;
  small_product(weight.data(), nullptr, true, 1, 2, 1, x.data(), &y);
  CHECK(std::isnan(y));
}

}  // namespace truesparse::testing
