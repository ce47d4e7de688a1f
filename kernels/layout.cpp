#include "layout.h"

#include <algorithm>

#include "kernels.h"
#include "threads.h"

namespace truesparse {

void block_starts(int64_t rows, const int32_t* indptr, const int32_t* indices, int64_t width, int64_t blocks, int32_t* starts) {
  for (int64_t r = 0; r < rows; ++r) {
    int32_t p = indptr[r];
    for (int64_t block = 0; block < blocks; ++block) {
      starts[block * rows + r] = p;
      for (const int64_t end = (block + 1) * width; p < indptr[r + 1] && indices[p] < end;) ++p;
    }
    starts[blocks * rows + r] = p;
  }
}

int64_t rows_alike(int64_t rows, const int32_t* indptr, const int32_t* indices, int64_t rows_per_group) {
  for (const int64_t alike : {4, 2}) {
    if (!rows || rows % alike || rows_per_group % alike) continue;
    bool all = true;
    for (int64_t r = 0; all && r < rows; ++r) {
      const int64_t first = r / alike * alike;
      all = std::equal(indices + indptr[r], indices + indptr[r + 1], indices + indptr[first], indices + indptr[first + 1]);
    }
    if (all) return alike;
  }
  return 1;
}

void transpose(int64_t rows, int64_t columns, const int32_t* indptr, const int32_t* indices, int64_t targets, const int32_t* keys,
               int64_t rows_per_group, int64_t factor, int32_t* t_indptr, int32_t* t_indices, int32_t* permutation) {
  const auto key = [&](int64_t row, int32_t column) {
    return keys ? keys[row / rows_per_group * columns + column] : static_cast<int64_t>(column);
  };
  std::fill(t_indptr, t_indptr + targets + 1, 0);
  for (int64_t r = 0; r < rows; ++r)
    for (int32_t p = indptr[r]; p < indptr[r + 1]; ++p) ++t_indptr[key(r, indices[p]) + 1];
  for (int64_t t = 0; t < targets; ++t) t_indptr[t + 1] += t_indptr[t];
  for (int64_t r = 0; r < rows; ++r)
    for (int32_t p = indptr[r]; p < indptr[r + 1]; ++p) {
      const int32_t at = t_indptr[key(r, indices[p])]++;  // the starts move up by one target; moved back below
      t_indices[at] = static_cast<int32_t>(r * factor + indices[p] % factor);
      permutation[at] = p;
    }
  for (int64_t t = targets; t > 0; --t) t_indptr[t] = t_indptr[t - 1];
  t_indptr[0] = 0;
}

std::vector<int64_t> partition(const Layout& layout, int64_t parts) {
  constexpr int64_t row_cost = 4;  // in connections
  const auto work = [&](int64_t row) { return layout.indptr[row] + row * row_cost; };
  std::vector<int64_t> boundaries{0};
  for (int64_t part = 1; part <= parts; ++part) {
    const int64_t goal = work(layout.rows) * part / parts;
    int64_t low = boundaries.back(), high = layout.rows;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (work(middle) < goal) low = middle + 1;
      else high = middle;
    }
    if (low > boundaries.back()) boundaries.push_back(low);
  }
  return boundaries;
}

template <class T>
void gather(const Layout& layout, const T* values, T* gathered, int64_t threads) {
  constexpr int64_t chunk = 32768;
  const int64_t nnz = layout.nnz();
  const Kernels<T>& k = kernels<T>(current_isa());
  parallel_for((nnz + chunk - 1) / chunk, threads, [&](int64_t, int64_t item) {
    const int64_t begin = item * chunk;
    k.gather(values, layout.permutation + begin, std::min(nnz - begin, chunk), gathered + begin);
  });
}

template void gather<float>(const Layout&, const float*, float*, int64_t);
template void gather<double>(const Layout&, const double*, double*, int64_t);

}  // namespace truesparse
