// How is a sparse matrix laid out for one sample, or a few? Rows side by side in the sixteen lanes of a vector; each step multiplies one
// connection of each lane. What it costs is bytes read and inputs looked up. So inputs are looked up in registers: a window over the
// columns makes stops, and at each stop every lane takes its next connections that the window shows, four at most. The window goes on as
// far as the lane that is most behind allows: no connection is missed, nothing is decided in the loop, and only lanes that are so far ahead
// that the window does not show their next connection take nothing (a zero). The wider the window, the fewer of those; two rows that
// share a lane do as much as twice the width, for less work. The oftener the window goes on, the fewer of those, too: a stop may show several
// windows, one after the other, for fewer connections each. Where connections are rare, places have 16 bits and inputs are gathered.
//
// An input that is not finite may reach rows that do not read it, by way of those zeros.
#pragma once

#include <cstdint>

#include "bfloat16.h"

namespace truesparse {

constexpr int64_t window_lanes = 16;
constexpr int64_t window_steps = 4;  // of a stop

// A kind of window is named by the bits of a place in it, of which the last one of 7 or 8 says which of two rows it is of; and by how many a stop
// shows, one after the other. There are 4 and 2, 4 and 4, for vectors of eight lanes and four; 5, 7, 8 and 16, of which a stop shows one.
constexpr int64_t rows_of_lane(int64_t bits) { return bits == 7 || bits == 8 ? 2 : 1; }
constexpr int64_t window_columns(int64_t bits) { return (int64_t{1} << bits) / rows_of_lane(bits); }
constexpr int64_t words_of_places(int64_t bits) { return bits == 16 ? 2 : 1; }  // of a stop and lane

// The arrays belong to the caller. V is how values are held: float, Bfloat16 or int8_t (times a scale for each row).
template <class V>
struct Windows {
  int64_t rows, columns;
  int64_t bits;            // of a place
  int64_t shown;           // windows of a stop
  const int32_t* order;    // [blocks, rows_of_lane, 16] the rows of each lane; -1: none
  const int32_t* starts;   // [blocks + 1] where the stops of a block begin
  const int32_t* first;    // [stops, shown] the first column of each window
  const uint32_t* places;  // [stops, words_of_places, 16] columns in the window, those of the first step in the lowest bits
  const V* values;         // [stops, steps, 16]
  const float* scales;     // [blocks, rows_of_lane, 16], for int8_t

  int64_t rows_of_block() const { return window_lanes * rows_of_lane(bits); }
  int64_t blocks() const { return (rows + rows_of_block() - 1) / rows_of_block(); }
};

// Fills starts [blocks + 1] for the layout that `fill_windows` makes.
void count_stops(int64_t rows, int64_t columns, const int32_t* indptr, const int32_t* indices, const int32_t* order, int64_t bits,
                 int64_t shown, int32_t* starts);

// Fills the arrays of the layout, which are zero before; `values` are in the order of the topology.
void fill_windows(int64_t rows, int64_t columns, const int32_t* indptr, const int32_t* indices, const float* values, const int32_t* order,
                  int64_t bits, int64_t shown, int32_t* first, uint32_t* places, float* own);

// dense [rows, columns], zero before, becomes W.
template <class V>
void unpack_windows(const Windows<V>& windows, float* dense, int64_t threads);

// y [batch, rows] = x [batch, columns] W^T + bias; negative ones become 0 if `relu`. bias is in the order of the lanes, or null.
template <class V>
void windows_spmv(const Windows<V>& windows, const float* bias, bool relu, const float* x, float* y, int64_t batch, int64_t threads);

}  // namespace truesparse
