// What does each instruction set provide? One table of functions per (instruction set, T, S): T is the type
// of the arithmetic, of values and sums; S that of the user's x, y and their gradients, the same or a narrower one.
//
// All arithmetic runs on *packed* tensors: feature-major, positions innermost. A position is one (sample) of a matrix or one
// (sample, height, width) of a convolution; a tile is 1 to `tile_vectors` vectors of positions, held in registers. For tile `t`
//
//     spmm   target[row][t] += value[p] * source[offset(p) + t]          over the connections p of the row
//
// for layers whose weights change no more; those that train have kernels of their own, run_kernels.h.
//
// Sums run in the order of the connections, one chain per position, whatever the width of the tile: results do not depend on
// how the positions are cut into tiles.
#pragma once

#include <cstdint>

#include "bfloat16.h"
#include "isa.h"

namespace truesparse {

// The numbers 0 to n - 1 as a type, to spell out constant shuffles.
template <int... lane>
struct Lanes {};
template <int n, int... lane>
struct CountTo : CountTo<n - 1, n - 1, lane...> {};
template <int... lane>
struct CountTo<0, lane...> {
  using type = Lanes<lane...>;
};

// Results below `low` become `low`, those above `high` become `high`; NaN stays.
template <class T>
struct Limits {
  T low, high;
};

// Some rows of one block of columns: row r holds the connections begins[r] to ends[r].
template <class T>
struct Connections {
  int64_t row_begin, row_end;
  const int32_t* begins;   // [rows]
  const int32_t* ends;     // [rows]
  const int32_t* offsets;  // [nnz] in units of `step`
  const T* values;         // [nnz]
  int64_t step;            // elements of the packed source per unit of offset
  int64_t alike;           // rows i * alike to i * alike + alike - 1 have the same offsets: 1, 2 or 4
  const Limits<T>* limits = nullptr;  // of the sums, with the last connections of the rows
};

// Packed samples: element (feature, sample) at packed[place(feature) * width + sample], `width` samples side by side.
// `place` null means place(i) = i.
struct Packing {
  int64_t samples;           // present; the rest of `width` is zero when packed and left out when unpacked
  int64_t width;             // a multiple of the lanes, or less than the lanes
  int64_t sample_stride;     // elements between samples in the user's tensor
  int64_t features;          // contiguous in the user's tensor
  const int32_t* place;      // [features]
};

template <class T, class S = T>
struct Kernels {
  int64_t lanes;         // positions in a vector
  int64_t tile_vectors;  // widest tile

  // A number that S does not have becomes the nearest one, ties to even.
  void (*pack)(const Packing& packing, const S* plain, T* packed);
  void (*unpack)(const Packing& packing, const T* packed, S* plain);
  // The same for what keeps its order: numbers side by side.
  void (*widen)(const S* from, int64_t count, T* to);
  void (*narrow)(const T* from, int64_t count, S* to);

  // to[i] = from[i * step]
  void (*every)(const S* from, int64_t count, int64_t step, T* to);
  // Row i of `columns` numbers from from + i * from_pitch to to + i * to_pitch. They do not overlap.
  void (*copy_rows)(const T* from, int64_t from_pitch, int64_t rows, int64_t columns, T* to, int64_t to_pitch);
  // to = `before` zeros, from[i] for i of `count` where kept[i % period] is not 0, else 0, and `after` zeros. Of `period` and the lanes one is a
  // multiple of the other; kept is as long as the larger of them.
  void (*keep)(const T* from, const T* kept, int64_t period, int64_t before, int64_t count, int64_t after, T* to);
  // to[i] = the largest of two by two positions, 2i and 2i + 1 of the row at `from` and of the one `pitch` elements after it; NaN if one is.
  // `width` samples side by side: 1 or a multiple of the lanes. `to` may be `from`.
  void (*pool)(const T* from, int64_t pitch, int64_t count, int64_t width, T* to);

  // One tile of `vectors` vectors for all rows. `first` starts from `bias` (null: zero) instead of from the target.
  void (*spmm)(const Connections<T>& connections, int64_t vectors, bool first, const T* bias, const T* source, T* target,
               int64_t target_stride);
  // sums[row] (+)= sum of dtarget[row][0 .. vectors)
  void (*sum)(int64_t row_begin, int64_t row_end, int64_t vectors, bool first, const T* dtarget, int64_t dtarget_stride, T* sums);
  // y[row] = bias[row] + sum of value[p] * x[indices[p]]: one sample needs no packing.
  void (*spmv)(const Connections<T>& connections, const T* bias, const T* x, T* y);
  // to[i] = x[at[i]]
  void (*gather)(const T* x, const int32_t* at, int64_t count, T* to);
  // The indices of all entries with |entry| >= threshold, ascending, into found [size]. Returns how many.
  int64_t (*scan)(const T* entries, int64_t size, T threshold, int32_t* found);
};

template <class T, class S = T>
const Kernels<T, S>& kernels(Isa isa);

}  // namespace truesparse
