// How is a matrix laid out where most inputs are zero? Column by column: the weights that one input feeds lie side by side, so that those of
// inputs that are zero are never read. Inputs that are not zero are listed first; then eight of their columns at a time are added to the
// results, which the nearest cache holds meanwhile. A weight may be whole, or have a list of connections for each column.
//
// An input that is zero takes no part, whatever its weights are: of a weight that is not finite, NaN is what the product would have given.
#pragma once

#include <cstdint>

#include "bfloat16.h"

namespace truesparse {

constexpr int64_t column_lanes = 16;

// The arrays belong to the caller. V is how values are held: float, Bfloat16 or int8_t (times a scale for each row).
template <class V>
struct Columns {
  int64_t rows, columns;
  const V* weight;      // [columns, stride], zero beyond the last row
  const float* scales;  // [rows], for int8_t

  int64_t stride() const { return (rows + column_lanes - 1) / column_lanes * column_lanes; }
};

template <class V>
struct ColumnLists {
  int64_t rows, columns;
  int64_t width;           // rows of a part, at most 65536: threads share the parts
  const int32_t* starts;   // [parts * columns + 1] where the connections of each column of each part begin
  const uint16_t* places;  // [connections] the row in its part, ascending in a column
  const V* values;         // [connections]
  const float* scales;     // [rows], for int8_t

  int64_t parts() const { return (rows + width - 1) / width; }
};

// y [batch, rows] = x [batch, columns] W^T + bias [rows], which may be null; negative ones become 0 if `relu`.
template <class V>
void columns_spmv(const Columns<V>& columns, const float* bias, bool relu, const float* x, float* y, int64_t batch, int64_t threads);
template <class V>
void columns_spmv(const ColumnLists<V>& lists, const float* bias, bool relu, const float* x, float* y, int64_t batch, int64_t threads);

// dense [columns, rows], zero before, becomes W^T.
template <class V>
void unpack_columns(const ColumnLists<V>& lists, float* dense, int64_t threads);

}  // namespace truesparse
