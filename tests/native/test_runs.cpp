// Do runs hold each connection once, those of a row in order, longest runs first, and all rows in the first block?
#include <doctest/doctest.h>

#include <algorithm>

#include "cases.h"
#include "runs.h"

namespace truesparse::testing {
namespace {

struct Shape {
  int64_t rows, columns;
  double density;
};

constexpr Shape shapes[] = {{0, 5, 0.5}, {1, 1, 1}, {7, 5, 0.5}, {3, 700, 0.9}, {131, 3, 0.3}, {67, 71, 0.1}, {40, 16, 0}, {9, 65, 1}};

template <class Place>
void check(const Topology& t, const Indices& permutation, int64_t width, int64_t parts, int64_t threads) {
  const Runs runs(t.rows, t.columns, t.indptr.data(), t.indices.data(), permutation.empty() ? nullptr : permutation.data(), width, parts, std::max<int64_t>(1, t.rows), threads);
  REQUIRE(runs.wide() == (sizeof(Place) == 4));
  REQUIRE(runs.parts() >= 1);
  REQUIRE(runs.parts() <= std::max<int64_t>(1, parts));
  REQUIRE(runs.part_begin(0) == 0);
  REQUIRE(runs.part_begin(runs.parts()) == t.rows);
  Indices columns = unwritten<int32_t>(t.nnz()), reached(t.indptr.begin(), t.indptr.end() - 1), seen;
  int64_t most = 0;
  for (int64_t block = 0; block < runs.blocks(); ++block)
    for (int64_t part = 0; part < runs.parts(); ++part) {
      RunCursor<Place> cursor = runs.cursor<Place>(block, part);
      int32_t shortest = longest_run;
      Indices rows;
      int64_t connection = runs.connections_begin(block, part);
      for (int64_t run = 0; run < runs.count(block, part); ++run) {
        REQUIRE((*cursor.length > 0 || !block));
        rows.push_back(*cursor.row);
        REQUIRE(*cursor.length <= shortest);
        shortest = *cursor.length;
        REQUIRE(*cursor.row >= runs.part_begin(part));
        REQUIRE(*cursor.row + runs.alike <= runs.part_begin(part + 1));
        for (int64_t r = 0; r < runs.alike; ++r) {
          // A run of a row begins where the one before ended.
          const int32_t begin = reached[*cursor.row + r];
          reached[*cursor.row + r] += *cursor.length;
          if (permutation.empty()) REQUIRE(cursor.start[r] == begin);
          else REQUIRE(cursor.start[r] == connection);
          for (int32_t i = 0; i < *cursor.length; ++i) {
            columns[begin + i] = static_cast<int32_t>(block * runs.width + cursor.place[i]);
            if (!permutation.empty()) REQUIRE(runs.at()[connection + i] == permutation[begin + i]);
          }
          connection += *cursor.length;
        }
        cursor = {cursor.row + 1, cursor.length + 1, cursor.start + runs.alike, cursor.place + *cursor.length};
      }
      std::sort(rows.begin(), rows.end());
      REQUIRE(std::adjacent_find(rows.begin(), rows.end()) == rows.end());
      if (!block) REQUIRE(static_cast<int64_t>(rows.size()) * runs.alike == runs.part_begin(part + 1) - runs.part_begin(part));
      REQUIRE(connection == runs.connections_begin(block, part) + runs.connections(block, part));
      most = std::max(most, runs.connections(block, part));
    }
  CHECK(most == runs.most_connections());
  CHECK(difference(columns, t.indices) == "");
  CHECK(std::equal(reached.begin(), reached.end(), t.indptr.begin() + 1));
}

}  // namespace

TEST_CASE("runs hold each connection once") {
  Random random(3);
  for (const Shape& shape : shapes)
    for (const int64_t width : {1, 7, 64, 700})
      for (const int64_t parts : {1, 2, 5}) {
        const Topology t = random_topology(random, shape.rows, shape.columns, shape.density);
        Indices permutation(t.nnz());
        for (size_t i = 0; i < permutation.size(); ++i) permutation[i] = static_cast<int32_t>(permutation.size() - i);
        CAPTURE(t.rows);
        CAPTURE(t.columns);
        CAPTURE(width);
        CAPTURE(parts);
        check<uint16_t>(t, {}, width, parts, 1);
        check<uint16_t>(t, permutation, width, parts, 2);
      }
}

// Where no row has more connections than lengths can say, blocks may be as wide as they are wanted.
TEST_CASE("runs of wide blocks have places of 32 bits") {
  Random random(4);
  for (const int64_t columns : {65535, 65536, 200000}) {
    const Topology t = random_topology(random, 9, columns, 0.001);
    int64_t longest = 0;
    for (int64_t row = 0; row < t.rows; ++row) longest = std::max<int64_t>(longest, t.indptr[row + 1] - t.indptr[row]);
    for (const int64_t width : {int64_t{65535}, int64_t{65536}, columns}) {
      CAPTURE(columns);
      CAPTURE(width);
      if (width > widest_run_block && longest <= longest_run) check<int32_t>(t, {}, width, 2, 1);
      else check<uint16_t>(t, {}, width, 2, 2);
    }
  }
  const Topology few{2, 200000, {0, 2, 3}, {1, 199999, 70000}};
  check<int32_t>(few, {}, 200000, 2, 1);
  check<int32_t>(few, {7, 8, 9}, 100000, 1, 2);
}

}  // namespace truesparse::testing
