// The verbs of y [batch, rows] = x [batch, columns] W^T, for tensors that are contiguous.
// (T, S) is (float, float), (double, double) or (float, Bfloat16): sums are T, what has one entry a sample is S.
//
// With `pixels` > 1 each pixel of an image is a sample: x is [images, columns, pixels], y [images, rows, pixels] and batch is images * pixels.
#pragma once

#include <cstdint>

#include "bfloat16.h"
#include "runs.h"

namespace truesparse {

// The connections as the user has them. The arrays belong to the caller.
struct Matrix {
  int64_t rows, columns;
  const int32_t* indptr;   // [rows + 1]
  const int32_t* indices;  // [nnz] ascending within a row
};

// y [batch, rows] = x W^T + bias (null: none), one sample after the other: for a few, of which a tile would be mostly empty.
template <class T, class S>
void matrix_spmv(const Matrix& matrix, const T* values, const T* bias, const S* x, S* y, int64_t batch, int64_t threads);

// The same for many.
template <class T, class S>
void matrix_spmm(const Runs& runs, const T* values, const T* bias, const S* x, S* y, int64_t batch, int64_t pixels, int64_t threads);

// dvalues [nnz], dx [batch, columns] and dbias [rows], each unless null. `runs` serves dvalues and dbias only, `transposed` and `values` dx only
// (else null).
template <class T, class S>
void matrix_backward(const Runs* runs, const Runs* transposed, const T* values, const S* dy, const S* x, T* dvalues, S* dx, T* dbias,
                     int64_t rows, int64_t batch, int64_t pixels, int64_t threads);

}  // namespace truesparse
