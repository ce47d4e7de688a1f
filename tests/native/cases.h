// What every native test needs: topologies and numbers from chance that repeats itself, and a comparison.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iomanip>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "bfloat16.h"
#include "isa.h"

namespace truesparse::testing {

using Random = std::mt19937_64;
using Indices = std::vector<int32_t>;  // every buffer is a vector of its own, exactly as large as needed: sanitizers see its ends

inline int64_t below(Random& random, int64_t end) { return static_cast<int64_t>(random() % static_cast<uint64_t>(end)); }

inline double wide(double number) { return number; }
inline double wide(Bfloat16 number) {
  const uint32_t bits = static_cast<uint32_t>(number.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// The number of type T nearest to a normal one, ties to even.
template <class T>
double nearest(double number) {
  if (!std::is_same_v<T, Bfloat16>) return static_cast<double>(static_cast<std::conditional_t<std::is_same_v<T, float>, float, double>>(number));
  int exponent;
  const double significand = std::frexp(number, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(significand, 8)), exponent - 8);
}

template <class T>
T made(double number) {
  if constexpr (std::is_same_v<T, Bfloat16>) {
    const float wide = static_cast<float>(nearest<T>(number));
    uint32_t bits;
    std::memcpy(&bits, &wide, sizeof bits);
    return {static_cast<uint16_t>(bits >> 16)};
  } else {
    return static_cast<T>(number);
  }
}

// Whole numbers, so small that sums of their products have no rounding error: any order of the terms gives one result. They are
// too large for the products of doubles to fit into a float.
template <class T>
std::vector<T> whole_numbers(Random& random, int64_t count) {
  const int64_t most = sizeof(T) <= 4 ? 8 : 1 << 18;
  std::vector<T> numbers(count);
  for (T& number : numbers) number = made<T>(static_cast<double>(below(random, 2 * most + 1) - most));
  return numbers;
}

// Thirds of whole numbers: here the order of the terms shows.
template <class T>
std::vector<T> fractions(Random& random, int64_t count) {
  std::vector<T> numbers = whole_numbers<T>(random, count);
  for (T& number : numbers) number = made<T>(wide(number) / 3);
  return numbers;
}

// What nobody has written yet.
template <class T>
std::vector<T> unwritten(int64_t count) {
  if constexpr (std::is_integral_v<T>) return std::vector<T>(count, std::numeric_limits<T>::min());
  else return std::vector<T>(count, made<T>(std::numeric_limits<double>::quiet_NaN()));
}

struct Topology {
  int64_t rows, columns;
  Indices indptr, indices;

  int64_t nnz() const { return static_cast<int64_t>(indices.size()); }
};

// Where the density leaves a choice, some rows are empty and some are full. Some topologies repeat each row once or three times.
inline Topology random_topology(Random& random, int64_t rows, int64_t columns, double density) {
  Topology topology{rows, columns, {0}, {}};
  const int64_t alike = int64_t{1} << below(random, 3);
  for (int64_t row = 0; row < rows; ++row) {
    if (row % alike) {
      const int64_t begin = topology.indptr[row - 1], end = topology.indptr[row];
      for (int64_t p = begin; p < end; ++p) topology.indices.push_back(topology.indices[p]);
      topology.indptr.push_back(static_cast<int32_t>(topology.indices.size()));
      continue;
    }
    const int64_t kind = density > 0 && density < 1 ? below(random, 12) : 2;
    const double own = kind == 0 ? 0 : kind == 1 ? 1 : density;
    for (int64_t column = 0; column < columns; ++column)
      if (static_cast<double>(below(random, 1000)) < own * 1000) topology.indices.push_back(static_cast<int32_t>(column));
    topology.indptr.push_back(static_cast<int32_t>(topology.indices.size()));
  }
  topology.indptr.shrink_to_fit();
  topology.indices.shrink_to_fit();
  return topology;
}

// "" or where they differ first, once what is expected is rounded as T is. NaN equals nothing.
template <class T, class U>
std::string difference(const std::vector<T>& actual, const std::vector<U>& expected) {
  if (actual.size() != expected.size()) return std::to_string(actual.size()) + " numbers instead of " + std::to_string(expected.size());
  for (size_t i = 0; i < actual.size(); ++i)
    if (!(wide(actual[i]) == nearest<T>(wide(expected[i])))) {
      std::ostringstream text;
      text << std::setprecision(17) << "number " << i << " is " << wide(actual[i]) << " instead of " << wide(expected[i]);
      return text.str();
    }
  return "";
}

// Those of this machine, or the one that the environment variable TRUESPARSE_ISA names.
inline std::vector<std::string> isas() {
  const char* wanted = std::getenv("TRUESPARSE_ISA");
  return wanted && *wanted ? std::vector<std::string>{wanted} : supported_isas();
}

}  // namespace truesparse::testing
