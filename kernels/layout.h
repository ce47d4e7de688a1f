// How are connections sorted, cut and shared out?
#pragma once

#include <cstdint>
#include <vector>

namespace truesparse {

// Where blocks 1 and on of `width` columns begin: fills starts, [blocks - 1, rows]. Block 0 begins and the last one ends with the row.
void block_starts(int64_t rows, const int32_t* indptr, const int32_t* indices, int64_t width, int64_t blocks, int32_t* starts,
                  int64_t threads = 1);

// The largest of 4, 2 and 1 such that rows i * alike to i * alike + alike - 1 have the same indices for all i, none of them across
// a multiple of `rows_per_group`. Blocks have such rows; a source loaded once then serves them all.
int64_t rows_alike(int64_t rows, const int32_t* indptr, const int32_t* indices, int64_t rows_per_group);

// Sorts connections by key, stable. Connection p of row r has the key keys[group(r) * columns + indices[p]], in [0, targets), and
// becomes index r * factor + indices[p] % factor. Fills t_indptr [targets + 1], t_indices and permutation [nnz].
// A plain transpose has keys null (the column itself) and factor 1.
void transpose(int64_t rows, int64_t columns, const int32_t* indptr, const int32_t* indices, int64_t targets, const int32_t* keys,
               int64_t rows_per_group, int64_t factor, int32_t* t_indptr, int32_t* t_indices, int32_t* permutation, int64_t threads = 1);

// Cuts the rows into at most `parts` runs of about equal work, connections + a little for the row itself: [parts + 1] boundaries, each of
// them a multiple of `alike`, as `rows` is.
std::vector<int64_t> partition(int64_t rows, const int32_t* indptr, int64_t parts, int64_t alike = 1);

}  // namespace truesparse
