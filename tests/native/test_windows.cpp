// Do windows give the product, for places of every size, on every instruction set?
#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>

#include "cases.h"
#include "windows.h"

namespace truesparse::testing {
namespace {

constexpr std::pair<int64_t, int64_t> kinds[] = {{4, 2}, {4, 4}, {5, 1}, {7, 1}, {8, 1}, {16, 1}};

struct Shape {
  int64_t rows, columns;
  double density;
};

constexpr Shape shapes[] = {{0, 5, 0.5}, {1, 1, 1}, {7, 5, 0.5}, {3, 130, 0.2}, {33, 3, 0.3}, {37, 71, 0.1}, {20, 16, 0}, {16, 64, 1}, {50, 64, 0.02}, {9, 70000, 0.0005}};

Indices shuffled_order(Random& random, int64_t rows, int64_t of_block) {
  Indices order((rows + of_block - 1) / of_block * of_block, -1);
  std::iota(order.begin(), order.begin() + rows, 0);
  std::shuffle(order.begin(), order.begin() + rows, random);
  return order;
}

template <class V>
std::vector<V> held_as(const std::vector<float>& values) {
  std::vector<V> held;
  for (const float value : values) {
    if constexpr (std::is_same_v<V, int8_t>) held.push_back(static_cast<int8_t>(value));
    else held.push_back(made<V>(value));
  }
  held.shrink_to_fit();
  return held;
}

template <class V>
void hold(Random& random, const Shape& shape, int64_t bits, int64_t shown, int64_t batch, bool relu) {
  const Topology t = random_topology(random, shape.rows, shape.columns, shape.density);
  const std::vector<float> values = whole_numbers<float>(random, t.nnz()), x = whole_numbers<float>(random, batch * t.columns);
  const std::vector<float> bias = whole_numbers<float>(random, t.rows);
  const int64_t of_block = window_lanes * rows_of_lane(bits);
  const Indices order = shuffled_order(random, t.rows, of_block);
  Indices starts = unwritten<int32_t>(order.size() / of_block + 1);
  count_stops(t.rows, t.columns, t.indptr.data(), t.indices.data(), order.data(), bits, shown, starts.data());
  const int64_t stops = starts.back();
  Indices first(stops * shown);
  std::vector<uint32_t> places(stops * words_of_places(bits) * window_lanes);
  std::vector<float> own(stops * window_steps * window_lanes);
  fill_windows(t.rows, t.columns, t.indptr.data(), t.indices.data(), values.data(), order.data(), bits, shown, first.data(), places.data(), own.data());
  const std::vector<V> held = held_as<V>(own);
  std::vector<float> scales(std::is_same_v<V, int8_t> ? order.size() : 0, 2), lane_bias(order.size());
  for (size_t lane = 0; lane < order.size(); ++lane)
    if (order[lane] >= 0) lane_bias[lane] = bias[order[lane]];
  const Windows<V> windows{t.rows,       t.columns,     bits,        shown,         order.data(),
                           starts.data(), first.data(), places.data(), held.data(), scales.empty() ? nullptr : scales.data()};
  std::vector<double> expected;
  for (int64_t sample = 0; sample < batch; ++sample)
    for (int64_t row = 0; row < t.rows; ++row) {
      double sum = 0;
      for (int32_t p = t.indptr[row]; p < t.indptr[row + 1]; ++p) sum += values[p] * x[sample * t.columns + t.indices[p]];
      sum = sum * (scales.empty() ? 1 : 2) + bias[row];
      expected.push_back(relu ? std::max(sum, 0.0) : sum);
    }
  for (const int64_t threads : {1, 2}) {
    std::vector<float> y = unwritten<float>(batch * t.rows);
    windows_spmv(windows, lane_bias.data(), relu, x.data(), y.data(), batch, threads);
    CAPTURE(t.rows);
    CAPTURE(t.columns);
    CAPTURE(bits);
    CAPTURE(shown);
    CAPTURE(batch);
    CHECK(difference(y, expected) == "");
    std::vector<float> dense(t.rows * t.columns), wanted(t.rows * t.columns);
    unpack_windows(windows, dense.data(), threads);
    for (int64_t row = 0; row < t.rows; ++row)
      for (int32_t p = t.indptr[row]; p < t.indptr[row + 1]; ++p) wanted[row * t.columns + t.indices[p]] = values[p] * (scales.empty() ? 1 : 2);
    CHECK(dense == wanted);
  }
}

}  // namespace

TEST_CASE("windows give the product") {
  for (const std::string& isa : isas()) {
    use_isa(isa);
    Random random(1);
    for (const Shape& shape : shapes)
      for (const auto& [bits, shown] : kinds)
        for (const int64_t batch : {1, 3, 6}) {
          hold<float>(random, shape, bits, shown, batch, batch == 3);
          hold<Bfloat16>(random, shape, bits, shown, batch, false);
          hold<int8_t>(random, shape, bits, shown, batch, true);
        }
  }
  use_isa("");
}

TEST_CASE("windows miss nothing that they can take at once") {
  // Two of every eight columns in each row: at each stop every lane has four connections in sight.
  Random random(2);
  constexpr int64_t rows = 32, columns = 640;
  Topology t = random_topology(random, rows, columns, 0);
  t.indices.clear();
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; column += 8)
      for (const int64_t within : {1, 6}) t.indices.push_back(static_cast<int32_t>(column + within));
    t.indptr[row + 1] = static_cast<int32_t>(t.indices.size());
  }
  for (const auto& [bits, shown] : kinds) {
    const int64_t of_block = window_lanes * rows_of_lane(bits);
    Indices order(rows), starts = unwritten<int32_t>(rows / of_block + 1);
    std::iota(order.begin(), order.end(), 0);
    count_stops(rows, columns, t.indptr.data(), t.indices.data(), order.data(), bits, shown, starts.data());
    CHECK(starts.back() * window_steps * window_lanes == t.nnz());
  }
}

}  // namespace truesparse::testing
