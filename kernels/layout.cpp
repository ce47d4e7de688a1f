#include "layout.h"

#include <algorithm>
#include <utility>

#include "threads.h"

namespace truesparse {

void block_starts(int64_t rows, const int32_t* indptr, const int32_t* indices, int64_t width, int64_t blocks, int32_t* starts,
                  int64_t threads) {
  if (blocks < 2) return;
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
      for (int64_t block = 1; block < blocks; ++block) starts[(block - 1) * rows + r] = p = std::max(p, ends[block - 1]);
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
  // In two passes, so that what is being written stays in the second-level cache: connections to runs of keys, then each run by itself.
  constexpr int64_t connections_of_run = int64_t{1} << 18, most_runs = 1024;
  const int64_t nnz = indptr[rows], runs_wanted = std::clamp<int64_t>(nnz / connections_of_run, 1, most_runs);
  int shift = 0;
  while (targets >> shift > runs_wanted) ++shift;
  const int64_t runs = (targets >> shift) + 1, width = int64_t{1} << shift;
  const auto for_rows = [&](int64_t begin, int64_t end, auto&& body) {
    for (int64_t r = begin; r < end; ++r) {
      const int32_t* row_keys = keys ? keys + r / rows_per_group * columns : nullptr;
      for (int32_t p = indptr[r]; p < indptr[r + 1]; ++p) body(r, p, row_keys ? row_keys[indices[p]] : indices[p]);
    }
  };
  const auto index = [&](int64_t r, int32_t p) { return static_cast<int32_t>(factor == 1 ? r : r * factor + indices[p] % factor); };
  if (runs_wanted == 1) {
    std::fill(t_indptr, t_indptr + targets + 1, 0);
    for_rows(0, rows, [&](int64_t, int32_t, int32_t key) { ++t_indptr[key + 1]; });
    for (int64_t t = 0; t < targets; ++t) t_indptr[t + 1] += t_indptr[t];
    for_rows(0, rows, [&](int64_t r, int32_t p, int32_t key) {
      const int32_t at = t_indptr[key]++;  // the starts move up by one target; moved back below
      t_indices[at] = index(r, p);
      permutation[at] = p;
    });
    for (int64_t t = targets; t > 0; --t) t_indptr[t] = t_indptr[t - 1];
    t_indptr[0] = 0;
    return;
  }
  // Where each part of the rows writes in each run: after the parts before it, so that the order is that of the rows.
  const std::vector<int64_t> boundaries = partition(rows, indptr, threads);
  const auto parts = static_cast<int64_t>(boundaries.size()) - 1;
  std::vector<int32_t> next(static_cast<size_t>(parts * runs));
  parallel_for(parts, threads, [&](int64_t, int64_t part) {
    int32_t* own = next.data() + part * runs;
    for_rows(boundaries[part], boundaries[part + 1], [&](int64_t, int32_t, int32_t key) { ++own[key >> shift]; });
  });
  std::vector<int32_t> starts(static_cast<size_t>(runs) + 1);
  int32_t before = 0;
  for (int64_t run = 0; run < runs; ++run) {
    starts[run] = before;
    for (int64_t part = 0; part < parts; ++part) before += std::exchange(next[part * runs + run], before);
  }
  starts[runs] = before;
  parallel_for(parts, threads, [&](int64_t, int64_t part) {
    int32_t* own = next.data() + part * runs;
    for_rows(boundaries[part], boundaries[part + 1], [&](int64_t r, int32_t p, int32_t key) {
      const int32_t at = own[key >> shift]++;
      t_indices[at] = static_cast<int32_t>(r);
      permutation[at] = p;
    });
  });
  parallel_for(runs, threads, [&](int64_t, int64_t run) {
    const int32_t begin = starts[run], count = starts[run + 1] - begin;
    const int64_t first = run * width, last = std::min(targets, first + width);
    const std::vector<int32_t> of_rows(t_indices + begin, t_indices + begin + count), from(permutation + begin, permutation + begin + count);
    std::vector<int32_t> own(static_cast<size_t>(count)), place(static_cast<size_t>(std::max<int64_t>(last - first, 0)));
    for (int32_t i = 0; i < count; ++i) {
      const int32_t column = indices[from[i]];
      own[i] = (keys ? keys[of_rows[i] / rows_per_group * columns + column] : column) - static_cast<int32_t>(first);
      ++place[own[i]];
    }
    int32_t at = begin;
    for (int64_t t = first; t < last; ++t) {
      t_indptr[t] = at;
      at += std::exchange(place[t - first], at);
    }
    for (int32_t i = 0; i < count; ++i) {
      const int32_t to = place[own[i]]++;
      t_indices[to] = index(of_rows[i], from[i]);
      permutation[to] = from[i];
    }
  });
  t_indptr[targets] = static_cast<int32_t>(nnz);
}

std::vector<int64_t> partition(int64_t rows, const int32_t* indptr, int64_t parts, int64_t alike) {
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
    low -= low % alike;
    if (low > boundaries.back()) boundaries.push_back(low);
  }
  return boundaries;
}

}  // namespace truesparse
