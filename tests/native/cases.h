// What every native test needs: topologies and numbers from chance that repeats itself, and a comparison.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iomanip>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "isa.h"

namespace truesparse::testing {

using Random = std::mt19937_64;
using Indices = std::vector<int32_t>;  // every buffer is a vector of its own, exactly as large as needed: sanitizers see its ends

inline int64_t below(Random& random, int64_t end) { return static_cast<int64_t>(random() % static_cast<uint64_t>(end)); }

// Whole numbers, so small that sums of their products have no rounding error: any order of the terms gives one result. They are
// too large for the products of doubles to fit into a float.
template <class T>
std::vector<T> whole_numbers(Random& random, int64_t count) {
  const int64_t most = sizeof(T) == 4 ? 8 : 1 << 18;
  std::vector<T> numbers(count);
  for (T& number : numbers) number = static_cast<T>(below(random, 2 * most + 1) - most);
  return numbers;
}

// Thirds of whole numbers: here the order of the terms shows.
template <class T>
std::vector<T> fractions(Random& random, int64_t count) {
  std::vector<T> numbers = whole_numbers<T>(random, count);
  for (T& number : numbers) number /= 3;
  return numbers;
}

// What nobody has written yet.
template <class T>
std::vector<T> unwritten(int64_t count) {
  return std::vector<T>(count, std::numeric_limits<T>::has_quiet_NaN ? std::numeric_limits<T>::quiet_NaN() : std::numeric_limits<T>::min());
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

// "" or where they differ first. NaN equals nothing.
template <class T, class U>
std::string difference(const std::vector<T>& actual, const std::vector<U>& expected) {
  if (actual.size() != expected.size()) return std::to_string(actual.size()) + " numbers instead of " + std::to_string(expected.size());
  for (size_t i = 0; i < actual.size(); ++i)
    if (!(actual[i] == static_cast<T>(expected[i]))) {
      std::ostringstream text;
      text << std::setprecision(17) << "number " << i << " is " << actual[i] << " instead of " << expected[i];
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
