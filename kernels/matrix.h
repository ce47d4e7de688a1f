// The verbs of y [batch, rows] = x [batch, columns] W^T, for tensors that are contiguous.
// (T, S) is (float, float), (double, double) or (float, Bfloat16): sums are T, what has one entry a sample is S.
//
// With `pixels` > 1 each pixel of an image is a sample: x is [images, columns, pixels], y [images, rows, pixels] and batch is images * pixels.
#pragma once

#include <cstdint>

#include "bfloat16.h"
#include "layout.h"

namespace truesparse {

// y = x W^T + bias (null: none). With the transposed layout and dy for x this is dx.
template <class T, class S>
void matrix_spmm(const Layout& layout, const T* values, const T* bias, const S* x, S* y, int64_t batch, int64_t pixels, int64_t threads);

// dvalues [nnz], dx [batch, columns] and dbias [rows], each unless null. `transposed` and `values` serve dx only (else null).
template <class T, class S>
void matrix_backward(const Layout& layout, const Layout* transposed, const T* values, const S* dy, const S* x, T* dvalues, S* dx, T* dbias,
                     int64_t batch, int64_t pixels, int64_t threads);

}  // namespace truesparse
