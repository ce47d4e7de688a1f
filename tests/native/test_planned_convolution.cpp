// Does a planned convolution give the product, its limits and its maxima, however it is cut, on every instruction set?
#include <doctest/doctest.h>

#include <algorithm>

#include "cases.h"
#include "planned_convolution.h"
#include "verbs.h"

namespace truesparse::testing {
namespace {

struct Shape {
  Convolution convolution;
  Pair size;
  double density;
};

// Pointwise where the images are, and where they are too narrow for that; small planes; strides and dilations; groups; depthwise; many channels.
constexpr Shape shapes[] = {
    {{6, 5, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1}, {4, 12}, 0.4},
    {{3, 9, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1}, {16, 17}, 0.3},
    {{7, 4, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1}, {7, 7}, 0.5},
    {{3, 8, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, {6, 5}, 1},
    {{4, 6, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 2}, {9, 12}, 0.3},
    {{5, 5, {5, 3}, {1, 2}, {2, 1}, {1, 2}, 5}, {8, 7}, 0.6},
    {{2, 4, {2, 3}, {3, 1}, {0, 2}, {2, 1}, 2}, {9, 4}, 0.5},
    {{40, 3, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, {5, 20}, 0.1},
    {{2, 3, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, {4, 4}, 0},
    // Copies that are shifted: rows of a vector, of half of one, of several; wider and narrower than the image; dilated; padded by more than it has.
    {{3, 6, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, {7, 8}, 0.8},
    {{2, 7, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, {5, 16}, 0.9},
    {{4, 5, {2, 5}, {1, 1}, {1, 2}, {2, 1}, 1}, {6, 24}, 0.7},
    {{3, 8, {3, 3}, {1, 1}, {0, 0}, {1, 1}, 1}, {6, 10}, 0.8},
    {{2, 9, {1, 3}, {1, 1}, {0, 3}, {1, 2}, 1}, {3, 6}, 0.9},
    {{1, 16, {3, 3}, {1, 1}, {1, 5}, {1, 4}, 1}, {2, 6}, 1},
};

void hold(Random& random, const Shape& shape, int64_t batch, bool pool, bool limited, bool with_bias) {
  const Convolution& c = shape.convolution;
  const Layer layer(false, c, shape.size, batch, random_topology(random, c.out_channels, c.channels_per_group() * c.taps(), shape.density), 8);
  const Topology& t = layer.forward.topology;
  const std::vector<float> values = whole_numbers<float>(random, t.nnz()), x = whole_numbers<float>(random, layer.inputs());
  const std::vector<float> bias = whole_numbers<float>(random, c.out_channels);
  const double infinity = std::numeric_limits<double>::infinity(), low = limited ? -5 : -infinity, high = limited ? 60 : infinity;

  std::vector<double> sums(layer.outputs());
  const Pair output = layer.output();
  const int64_t pixels = output.height * output.width;
  for (size_t i = 0; with_bias && i < sums.size(); ++i) sums[i] = bias[static_cast<int64_t>(i) / pixels % c.out_channels];
  layer.for_products([&](int64_t y, int64_t p, int64_t from) { sums[y] += static_cast<double>(values[p]) * x[from]; });
  std::vector<double> expected;
  for (double& sum : sums) sum = std::clamp(sum, low, high);
  for (int64_t image = 0; pool && image < batch * c.out_channels; ++image)
    for (int64_t h = 0; h + 1 < output.height; h += 2)
      for (int64_t w = 0; w + 1 < output.width; w += 2) {
        const double* at = sums.data() + image * pixels + h * output.width + w;
        expected.push_back(std::max({at[0], at[1], at[output.width], at[output.width + 1]}));
      }
  if (!pool) expected = sums;

  for (const int64_t threads : {1, 2, 5}) {
    const Finish finish{{static_cast<float>(low), static_cast<float>(high)}, pool};
    const PlannedConvolution planned(c, t.indptr.data(), t.indices.data(), values.data(), with_bias ? bias.data() : nullptr, finish, batch, shape.size, threads);
    std::vector<float> y = unwritten<float>(static_cast<int64_t>(expected.size()));
    planned.run(x.data(), y.data());
    CAPTURE(c.in_channels);
    CAPTURE(c.kernel.height);
    CAPTURE(batch);
    CAPTURE(pool);
    CAPTURE(threads);
    CHECK(difference(y, expected) == "");
  }
}

}  // namespace

TEST_CASE("planned convolutions give the product") {
  for (const std::string& isa : isas()) {
    use_isa(isa);
    Random random(1);
    for (const Shape& shape : shapes)
      for (const int64_t batch : {0, 1, 3, 14, 35})
        for (const bool pool : {false, true}) hold(random, shape, batch, pool, batch % 2 == 1, batch != 3);
  }
  use_isa("");
}

}  // namespace truesparse::testing
