// How do the connections of one topology become those of another? By merges of ascending arrays, in linear time.
//
// A topology is rows, indptr [rows + 1] and indices [nnz], columns ascending within a row; a key is the position
// row * columns + column. Rows are shared out among threads; no result depends on their number.
#pragma once

#include <cstdint>

namespace truesparse {

// The row of each connection, [nnz].
void row_of_each(int64_t rows, const int32_t* indptr, int32_t* row);

// The key of each connection, [nnz].
void key_of_each(int64_t rows, int64_t columns, const int32_t* indptr, const int32_t* indices, int64_t* keys);

// The topology of `count` ascending keys inside the matrix.
void compress(int64_t rows, int64_t columns, const int64_t* keys, int64_t count, int32_t* indptr, int32_t* indices);

// The topology of `count` pairs inside the matrix, in any order; what is there several times counts once. indices has room for all. Returns how
// many there are.
int64_t collect(int64_t rows, const int32_t* row, const int32_t* column, int64_t count, int32_t* indptr, int32_t* indices);

// Where the rows of the connections begin for which `kept` [nnz] is true. Returns how many there are.
int64_t kept_starts(int64_t rows, const int32_t* indptr, const bool* kept, int32_t* kept_indptr);

// Their columns.
void keep(int64_t rows, const int32_t* indptr, const int32_t* indices, const bool* kept, const int32_t* kept_indptr, int32_t* kept_indices,
          int64_t threads);

// The connections and those at `count` ascending keys inside the matrix. False if a key is connected already.
bool grow(int64_t rows, int64_t columns, const int32_t* indptr, const int32_t* indices, const int64_t* keys, int64_t count,
          int32_t* grown_indptr, int32_t* grown_indices, int64_t threads);

// For each connection of the new topology its index in the old one, or -1.
void follow(int64_t rows, int64_t columns, const int32_t* old_indptr, const int32_t* old_indices, const int32_t* new_indptr,
            const int32_t* new_indices, int32_t* source, int64_t threads);

// moved[i] = source[i] < 0 ? *fill : array[source[i]], for entries of `bytes` 1, 2, 4 or 8; the array is not empty.
template <class Index>
void move(int64_t bytes, const void* array, const Index* source, int64_t count, const void* fill, void* moved, int64_t threads);

// Ascending indices of the `count` lowest of `scores` [size]; ties go to the earlier, NaN counts as the largest finite number.
template <class T>
void lowest(const T* scores, int64_t size, int64_t count, int64_t* indices, int64_t threads);

// For each of `wanted` [count] the first of the ascending `sums` [size] that is larger, or the last one. sums[size - 1] is above 0, `wanted` are
// at least 0 and mostly below it. In constant time each where they are drawn uniformly from what is below it.
void place(const double* sums, int64_t size, const double* wanted, int64_t count, int64_t* places, int64_t threads);

// One round of drawing without repeats. Of the ascending keys `drawn`, those that are neither `present`, nor `taken`, nor repeated
// join `taken` in `merged`; the others go to `refused`, ascending. All arrays but `drawn` are ascending without repeats.
// Returns how many were accepted.
int64_t accept(const int64_t* present, int64_t present_count, const int64_t* taken, int64_t taken_count, const int64_t* drawn,
               int64_t drawn_count, int64_t* merged, int64_t* refused);

}  // namespace truesparse
