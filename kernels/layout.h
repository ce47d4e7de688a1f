// How is a topology laid out for the kernels?
#pragma once

#include <cstdint>
#include <vector>

namespace truesparse {

// The connections by target row, cut into blocks of columns so that the packed source of a block stays in the nearest cache.
// The arrays belong to the caller. `starts` is [blocks - 1, rows], where blocks 1 and on begin: block 0 begins and the last one ends with the row.
struct Layout {
  int64_t rows, columns;
  const int32_t* indptr;       // [rows + 1]
  const int32_t* indices;      // [nnz] ascending within a row
  const int32_t* permutation;  // [nnz] where in the user's values; null: in place
  const int32_t* starts;
  int64_t blocks, width;       // the last block may be narrower
  int64_t alike;               // rows that share their columns, see rows_alike

  int64_t nnz() const { return indptr[rows]; }
  // Row r holds in block b the connections start(b)[r] to start(b + 1)[r].
  const int32_t* start(int64_t block) const { return block <= 0 ? indptr : block >= blocks ? indptr + 1 : starts + (block - 1) * rows; }
};

// Fills starts, [blocks - 1, rows], for blocks of `width` columns.
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

// Cuts the rows into at most `parts` runs of about equal work, connections + a little for the row itself: [parts + 1] boundaries.
std::vector<int64_t> partition(int64_t rows, const int32_t* indptr, int64_t parts);
inline std::vector<int64_t> partition(const Layout& layout, int64_t parts) { return partition(layout.rows, layout.indptr, parts); }

// values[permutation[p]] for all p.
template <class T>
void gather(const Layout& layout, const T* values, T* gathered, int64_t threads);

}  // namespace truesparse
