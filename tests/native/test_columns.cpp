// Do columns give the product, whole and as lists, on every instruction set, and is nothing read of columns whose input is zero?
#include <doctest/doctest.h>

#include <algorithm>

#include "cases.h"
#include "columns.h"

namespace truesparse::testing {
namespace {

struct Shape {
  int64_t rows, columns;
  double density;
};

constexpr Shape shapes[] = {{0, 5, 0.5}, {5, 0, 0.5}, {1, 1, 1}, {7, 5, 0.5}, {3, 130, 0.2}, {33, 3, 0.3}, {20, 16, 0}, {16, 64, 1}, {130, 70, 0.4}, {4100, 11, 0.3}};

template <class V>
V held(float value) {
  if constexpr (std::is_same_v<V, int8_t>) return static_cast<int8_t>(value);
  else return made<V>(value);
}

// W as [rows, columns] and in both ways; the lists in parts of `width` rows.
template <class V>
struct Laid {
  std::vector<float> dense;
  std::vector<V> whole, values;
  Indices starts;
  std::vector<uint16_t> places;

  Laid(const Topology& t, const std::vector<float>& numbers, int64_t width) : dense(t.rows * t.columns), starts{0} {
    const int64_t stride = Columns<V>{t.rows, t.columns, nullptr, nullptr}.stride();
    whole.resize(t.columns * stride);
    for (int64_t row = 0; row < t.rows; ++row)
      for (int32_t p = t.indptr[row]; p < t.indptr[row + 1]; ++p) {
        dense[row * t.columns + t.indices[p]] = numbers[p];
        whole[t.indices[p] * stride + row] = held<V>(numbers[p]);
      }
    for (int64_t begin = 0; begin < t.rows; begin += width)
      for (int64_t column = 0; column < t.columns; ++column) {
        for (int64_t row = begin; row < std::min(begin + width, t.rows); ++row)
          for (int32_t p = t.indptr[row]; p < t.indptr[row + 1]; ++p)
            if (t.indices[p] == column) {
              places.push_back(static_cast<uint16_t>(row - begin));
              values.push_back(held<V>(numbers[p]));
            }
        starts.push_back(static_cast<int32_t>(places.size()));
      }
    starts.shrink_to_fit();
    places.shrink_to_fit();
    values.shrink_to_fit();
  }
};

template <class V>
void hold(Random& random, const Shape& shape, int64_t width, int64_t batch, int64_t zeros, bool relu) {
  const Topology t = random_topology(random, shape.rows, shape.columns, shape.density);
  const std::vector<float> numbers = whole_numbers<float>(random, t.nnz()), bias = whole_numbers<float>(random, t.rows);
  std::vector<float> x = whole_numbers<float>(random, batch * t.columns);
  for (float& input : x)
    if (below(random, 10) < zeros) input = below(random, 2) ? 0.0f : -0.0f;
  const Laid<V> laid(t, numbers, width);
  const std::vector<float> scales(std::is_same_v<V, int8_t> ? t.rows : 0, 2);
  const float* scale = scales.empty() ? nullptr : scales.data();
  std::vector<double> expected;
  for (int64_t sample = 0; sample < batch; ++sample)
    for (int64_t row = 0; row < t.rows; ++row) {
      double sum = 0;
      for (int64_t column = 0; column < t.columns; ++column) sum += laid.dense[row * t.columns + column] * x[sample * t.columns + column];
      sum = sum * (scale ? 2 : 1) + bias[row];
      expected.push_back(relu ? std::max(sum, 0.0) : sum);
    }
  const Columns<V> whole{t.rows, t.columns, laid.whole.data(), scale};
  const ColumnLists<V> lists{t.rows, t.columns, width, laid.starts.data(), laid.places.data(), laid.values.data(), scale};
  CAPTURE(t.rows);
  CAPTURE(t.columns);
  CAPTURE(width);
  CAPTURE(batch);
  for (const int64_t threads : {1, 2}) {
    std::vector<float> y = unwritten<float>(batch * t.rows), again = unwritten<float>(batch * t.rows);
    columns_spmv(whole, bias.data(), relu, x.data(), y.data(), batch, threads);
    CHECK(difference(y, expected) == "");
    columns_spmv(lists, bias.data(), relu, x.data(), again.data(), batch, threads);
    CHECK(difference(again, expected) == "");
    std::vector<float> dense(t.columns * t.rows), wanted(t.columns * t.rows);
    unpack_columns(lists, dense.data(), threads);
    for (int64_t row = 0; row < t.rows; ++row)
      for (int64_t column = 0; column < t.columns; ++column)
        wanted[column * t.rows + row] = laid.dense[row * t.columns + column] * (scale ? 2 : 1);
    CHECK(dense == wanted);
  }
}

}  // namespace

TEST_CASE("columns give the product") {
  for (const std::string& isa : isas()) {
    use_isa(isa);
    Random random(1);
    for (const Shape& shape : shapes)
      for (const int64_t width : {7, 4096})
        for (const int64_t batch : {0, 1, 3, 18})
          for (const int64_t zeros : {0, 6, 10}) {
            hold<float>(random, shape, width, batch, zeros, batch == 3);
            hold<Bfloat16>(random, shape, width, batch, zeros, false);
            hold<int8_t>(random, shape, width, batch, zeros, true);
          }
  }
  use_isa("");
}

TEST_CASE("columns of inputs that are zero are not read, and a row sums in the order of its columns") {
  Random random(2);
  const Topology t = random_topology(random, 50, 40, 1);
  std::vector<float> numbers = fractions<float>(random, t.nnz()), x = fractions<float>(random, t.columns);
  for (int64_t column = 0; column < t.columns; ++column)
    if (column % 3) {
      x[column] = column % 2 ? 0.0f : -0.0f;
      for (int64_t row = 0; row < t.rows; ++row) numbers[row * t.columns + column] = std::numeric_limits<float>::quiet_NaN();
    }
  const Laid<float> laid(t, numbers, 16);
  const Columns<float> whole{t.rows, t.columns, laid.whole.data(), nullptr};
  const ColumnLists<float> lists{t.rows, t.columns, 16, laid.starts.data(), laid.places.data(), laid.values.data(), nullptr};
  for (const std::string& isa : isas()) {
    use_isa(isa);
    std::vector<float> first;
    for (const int64_t threads : {1, 2, 3}) {
      std::vector<float> y = unwritten<float>(t.rows), again = unwritten<float>(t.rows);
      columns_spmv(whole, nullptr, false, x.data(), y.data(), 1, threads);
      columns_spmv(lists, nullptr, false, x.data(), again.data(), 1, threads);
      for (int64_t row = 0; row < t.rows; ++row) {
        double sum = 0;
        for (int64_t column = 0; column < t.columns; column += 3) sum += static_cast<double>(numbers[row * t.columns + column]) * x[column];
        CHECK(std::abs(y[row] - sum) <= 1e-4);
      }
      CHECK(y == again);
      if (first.empty()) first = y;
      CHECK(y == first);
    }
  }
  use_isa("");
}

}  // namespace truesparse::testing
