// The verbs of matrix.h where neighbouring rows share their columns: a group of such rows is a small dense matrix, its values row by row in the
// user's array already. So nothing is laid out beforehand, a source that is loaded once serves several rows, and dx is added up where it goes.
//
// (T, S), `pixels` and what may be null are as in matrix.h.
#pragma once

#include <cstdint>

namespace truesparse {

// The connections as the user has them. The arrays belong to the caller.
struct SharedRows {
  int64_t rows, columns;
  const int32_t* indptr;   // [rows + 1]
  const int32_t* indices;  // [nnz] ascending within a row
  int64_t alike;           // rows of a group, a multiple of 8: rows i * alike to i * alike + alike - 1 have the same indices

  int64_t groups() const { return rows / alike; }
  int64_t begin(int64_t group) const { return indptr[group * alike]; }                          // of its values
  int64_t count(int64_t group) const { return indptr[group * alike + 1] - begin(group); }  // of its columns
};

// y [batch, rows] = x W^T + bias.
template <class T, class S>
void shared_rows_spmm(const SharedRows& matrix, const T* values, const T* bias, const S* x, S* y, int64_t batch, int64_t pixels, int64_t threads);

// dvalues [nnz], dx [batch, columns] and dbias [rows], each unless null.
template <class T, class S>
void shared_rows_backward(const SharedRows& matrix, const T* values, const S* dy, const S* x, T* dvalues, S* dx, T* dbias, int64_t batch, int64_t pixels,
                          int64_t threads);

}  // namespace truesparse
