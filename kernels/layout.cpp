#include "layout.h"

#include <algorithm>

#include "threads.h"

namespace truesparse {

void block_starts(int64_t rows, const int32_t* indptr, const int32_t* indices, int64_t width, int64_t blocks, int32_t* starts,
                  int64_t threads) {
  // A column's block by multiplication, exact for 32 bits: Lemire et al. 2019, https://arxiv.org/abs/1902.01961
  const uint64_t reciprocal = width > 1 ? ~uint64_t{0} / static_cast<uint64_t>(width) + 1 : 0;
  const std::vector<int64_t> boundaries = partition(rows, indptr, threads);
  parallel_for(static_cast<int64_t>(boundaries.size()) - 1, threads, [&](int64_t, int64_t item) {
    std::vector<int32_t> ends(static_cast<size_t>(blocks));
    for (int64_t r = boundaries[item]; r < boundaries[item + 1]; ++r) {
      int32_t p = indptr[r];
      const int32_t end = indptr[r + 1];
      std::fill(ends.begin(), ends.end(), p);
      // Each connection says where its block ends so far; comparing with the next boundary would be guessed wrong once a block.
      for (int32_t q = p; q < end; ++q) {
        const auto column = static_cast<uint64_t>(indices[q]);
        ends[reciprocal ? static_cast<uint64_t>(static_cast<unsigned __int128>(column) * reciprocal >> 64) : column] = q + 1;
      }
      for (int64_t block = 0; block < blocks; ++block) {
        starts[block * rows + r] = p;
        p = std::max(p, ends[block]);
      }
      starts[blocks * rows + r] = end;
    }
  });
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
               int64_t rows_per_group, int64_t factor, int32_t* t_indptr, int32_t* t_indices, int32_t* permutation, int64_t threads) {
  // One run of columns at a time, so that what is being written stays in the second-level cache, and shared out among threads: different
  // runs (of whole channels) have different keys.
  constexpr int64_t connections_of_run = int64_t{1} << 18;
  const int64_t runs_wanted = std::max<int64_t>(1, indptr[rows] / connections_of_run);
  const int64_t channels = (columns + factor - 1) / factor, width = std::max<int64_t>(1, (channels + runs_wanted - 1) / runs_wanted) * factor;
  const int64_t runs = std::max<int64_t>(1, (columns + width - 1) / width);
  std::vector<int32_t> starts(static_cast<size_t>((runs + 1) * rows));
  block_starts(rows, indptr, indices, width, runs, starts.data(), threads);
  const auto for_connections = [&](int64_t run, auto&& body) {
    const int32_t *begins = starts.data() + run * rows, *ends = begins + rows;
    for (int64_t r = 0; r < rows; ++r) {
      const int32_t* row_keys = keys ? keys + r / rows_per_group * columns : nullptr;
      for (int32_t p = begins[r]; p < ends[r]; ++p) body(r, p, row_keys ? row_keys[indices[p]] : indices[p]);
    }
  };
  std::fill(t_indptr, t_indptr + targets + 1, 0);
  parallel_for(runs, threads, [&](int64_t, int64_t run) { for_connections(run, [&](int64_t, int32_t, int32_t key) { ++t_indptr[key + 1]; }); });
  for (int64_t t = 0; t < targets; ++t) t_indptr[t + 1] += t_indptr[t];
  parallel_for(runs, threads, [&](int64_t, int64_t run) {
    for_connections(run, [&](int64_t r, int32_t p, int32_t key) {
      const int32_t at = t_indptr[key]++;  // the starts move up by one target; moved back below
      t_indices[at] = static_cast<int32_t>(factor == 1 ? r : r * factor + indices[p] % factor);
      permutation[at] = p;
    });
  });
  for (int64_t t = targets; t > 0; --t) t_indptr[t] = t_indptr[t - 1];
  t_indptr[0] = 0;
}

std::vector<int64_t> partition(int64_t rows, const int32_t* indptr, int64_t parts) {
  constexpr int64_t row_cost = 4;  // in connections
  const auto work = [&](int64_t row) { return indptr[row] + row * row_cost; };
  std::vector<int64_t> boundaries{0};
  for (int64_t part = 1; part <= parts; ++part) {
    const int64_t goal = work(rows) * part / parts;
    int64_t low = boundaries.back(), high = rows;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (work(middle) < goal) low = middle + 1;
      else high = middle;
    }
    if (low > boundaries.back()) boundaries.push_back(low);
  }
  return boundaries;
}

}  // namespace truesparse
