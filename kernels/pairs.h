// How is a sparse matrix laid out for batches, when its weights change no more? In blocks of columns that fill the nearest cache once packed,
// and within a block in pairs of rows that have many columns in common: what both need is loaded once. Connections lie in the order in which
// they are used, and pairs are sorted by how many they have, so that the processor foresees the ends of all loops.
#pragma once

#include <cstdint>
#include <vector>

namespace truesparse {

constexpr int64_t widest_block = 4096;  // columns
constexpr int64_t place_unit = 8;       // places are multiples of it: addresses of processors can be scaled that much

// `abreast` pairs make a group, which is computed as one: first the steps at which both rows of each pair take the same column, then the
// steps at which every row takes one of its own. Where a row has no connection left, it takes a column of zeros, the one after the block.
struct PairShape {
  int64_t rows, columns;
  int64_t abreast;  // 1 or 2
  int64_t width;    // columns of a block
  int64_t parts;    // rows are paired within so many parts, so that they can be shared out among threads

  int64_t blocks() const { return (columns + width - 1) / width; }
  int64_t part_begin(int64_t part) const { return rows * part / parts; }
};

// The arrays belong to the caller.
struct Pairs {
  PairShape shape;
  const int64_t* starts;     // [parts x blocks + 1, 3] where the groups, places and values of a block begin
  const uint16_t* steps;     // [groups, 2] shared ones, own ones
  const int32_t* members;    // [groups, 2 x abreast] rows of the part; one past its last: none
  const uint16_t* places;    // columns of the block, times 8: for a shared step one of each pair, for an own step one of each row
  const float* values;       // one of each row for every step
};

struct PairArrays {
  std::vector<int64_t> starts;
  std::vector<uint16_t> steps;
  std::vector<int32_t> members;
  std::vector<uint16_t> places;
  std::vector<float> values;
};

// `values` are in the order of the topology: row by row, columns ascending.
PairArrays lay_out_pairs(const PairShape& shape, const int32_t* indptr, const int32_t* indices, const float* values);

// y [batch, rows] = x [batch, columns] W^T + bias; negative ones become 0 if `relu`. bias is [rows] or null.
void pairs_spmm(const Pairs& pairs, const float* bias, bool relu, const float* x, float* y, int64_t batch, int64_t threads);

}  // namespace truesparse
