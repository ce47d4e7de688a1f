#include "shared_rows.h"

#include <algorithm>
#include <vector>

#include "layout.h"
#include "shared_row_kernels.h"
#include "threads.h"
#include "tiles.h"
#include "workspace.h"

namespace truesparse {
namespace {

// Columns `from` to `to` of a group; `before` (null: unasked) is how many of its columns come before.
template <class T>
SharedColumns<T> columns_between(const SharedRows& matrix, int64_t group, int64_t from, int64_t to, const T* values, int64_t* before = nullptr) {
  const int64_t begin = matrix.begin(group), count = matrix.count(group);
  const int32_t *const own = matrix.indices + begin, *const own_end = own + count;
  const int32_t* const first = from ? std::lower_bound(own, own_end, from) : own;
  const int32_t* const last = to < matrix.columns ? std::lower_bound(first, own_end, to) : own_end;
  if (before) *before = first - own;
  return {matrix.alike, last - first, first, values ? values + begin + (first - own) : nullptr, count};
}

}  // namespace

template <class T, class S>
void shared_rows_spmm(const SharedRows& matrix, const T* values, const T* bias, const S* x, S* y, int64_t batch, int64_t pixels, int64_t threads) {
  if (!batch || !matrix.rows) return;
  const Isa isa = isa_for<T>(batch);
  const SharedRowKernels<T>& k = shared_row_kernels<T>(isa);
  const Kernels<T, S>& of_samples = kernels<T, S>(isa);
  const Tiling<T, S> t = tiling(of_samples, k.tile_vectors, batch, pixels, threads);
  const size_t source_bytes = lines<T>(matrix.columns * t.width()), target_bytes = lines<T>(matrix.alike * t.width());
  const auto some_groups = [&](int64_t tile, int64_t begin, int64_t end, const T* source, T* target) {
    for (int64_t group = begin; group < end; ++group) {
      const int64_t row = group * matrix.alike;
      k.multiply(columns_between(matrix, group, 0, matrix.columns, values), t.vectors_of(tile), true, bias ? bias + row : nullptr, source, target);
      unpack_tile(t, tile, row, row + matrix.alike, matrix.rows, target, y);
    }
  };
  if (t.tiles >= threads) {
    const Workspace scratch((source_bytes + target_bytes) * threads);
    parallel_for(t.tiles, threads, [&](int64_t slot, int64_t tile) {
      T* const source = scratch.as<T>((source_bytes + target_bytes) * slot);
      pack_tile(t, tile, 0, matrix.columns, matrix.columns, x, source);
      some_groups(tile, 0, matrix.groups(), source, source + source_bytes / sizeof(T));
    });
    return;
  }
  // Fewer tiles than threads: the groups of a tile are shared out.
  const Workspace scratch(source_bytes * t.tiles + target_bytes * threads);
  const int64_t chunks = divide_up(matrix.columns, chunk_of_features), ready = t.tiles * chunks;
  const std::vector<int64_t> parts = partition(matrix.rows, matrix.indptr, 2 * divide_up(threads, t.tiles), matrix.alike);
  const auto parts_of_tile = static_cast<int64_t>(parts.size()) - 1;
  auto one = [&](int64_t slot, int64_t item) {
    if (item < ready) {
      const int64_t tile = item / chunks, begin = item % chunks * chunk_of_features;
      pack_tile(t, tile, begin, std::min(matrix.columns, begin + chunk_of_features), matrix.columns, x, scratch.as<T>(source_bytes * tile));
    } else {
      const int64_t tile = (item - ready) / parts_of_tile, part = (item - ready) % parts_of_tile;
      some_groups(tile, parts[part] / matrix.alike, parts[part + 1] / matrix.alike, scratch.as<T>(source_bytes * tile),
                  scratch.as<T>(source_bytes * t.tiles + target_bytes * slot));
    }
  };
  parallel_for(ready + t.tiles * parts_of_tile, threads, one, ready);
}

// Shared out as matrix_backward is: each thread takes some rows and some columns for dvalues, some tiles and the same columns for dx.
template <class T, class S>
void shared_rows_backward(const SharedRows& matrix, const T* values, const S* dy, const S* x, T* dvalues, S* dx, T* dbias, int64_t batch, int64_t pixels,
                          int64_t threads) {
  const int64_t rows = matrix.rows, columns = matrix.columns, alike = matrix.alike, nnz = matrix.indptr[rows];
  if (!batch) {
    if (dvalues) std::fill(dvalues, dvalues + nnz, T(0));
    if (dbias) std::fill(dbias, dbias + rows, T(0));
    return;
  }
  if (!dx && !dvalues && !dbias) return;

  // Lanes of dvalues are rows: groups of fewer rows than lanes take vectors half as wide.
  const bool few_rows = dvalues && alike % kernels<T>(isa_for<T>(batch)).lanes;
  const Isa isa = few_rows ? Isa::avx2 : isa_for<T>(batch);
  const SharedRowKernels<T>& k = shared_row_kernels<T>(isa);
  const Kernels<T, T>& of_sums = kernels<T, T>(isa);
  const Kernels<T, S>& of_samples = kernels<T, S>(isa);
  const Tiling<T, S> t = tiling(of_samples, k.tile_vectors, batch, pixels, 1);  // the sums must not depend on the number of threads
  BackwardWork work{rows, t.tiles};
  if (dvalues) work.dvalues = {nnz, columns, matrix.groups(), columns};
  if (dx) work.dx = {nnz, columns};
  const Grid grid = share(work, threads);

  const size_t target_bytes = lines<T>(rows * t.width()), panel_bytes = lines<T>(alike * t.width());
  const size_t source_bytes = lines<T>(divide_up(columns, grid.columns) * t.width());
  const size_t sums_bytes = dvalues ? lines<T>(nnz) : 0, own_bytes = target_bytes + panel_bytes + source_bytes;
  const Workspace scratch(sums_bytes + own_bytes * threads);
  T* const sums = scratch.as<T>();  // [columns, rows] of each group

  auto one = [&](int64_t slot, int64_t item) {
    T* const target = scratch.as<T>(sums_bytes + own_bytes * slot);
    T* const panel = target + target_bytes / sizeof(T);
    T* const source = panel + panel_bytes / sizeof(T);
    const int64_t row_part = item / grid.columns, column_part = item % grid.columns;
    const auto [group, group_end] = part_of(matrix.groups(), grid.rows, row_part);
    const auto [column, column_end] = part_of(columns, grid.columns, column_part);
    for (int64_t tile = 0; tile < t.tiles; ++tile) {
      const bool own_tile = dx && tile % grid.rows == row_part;
      const int64_t vectors = t.vectors_of(tile), width = vectors * t.k.lanes, samples = t.samples(tile);
      T* const of_columns = source - column * width;
      if (own_tile) pack_tile(t, tile, 0, rows, rows, dy, target);
      else pack_tile(t, tile, group * alike, group_end * alike, rows, dy, target);
      if (own_tile) {
        std::fill(source, source + (column_end - column) * width, T(0));
        for (int64_t g = 0; g < matrix.groups(); ++g)
          k.spread(columns_between(matrix, g, column, column_end, values), vectors, target + g * alike * width, of_columns);
        unpack_tile(t, tile, column, column_end, columns, source, dx);
      }
      if (dbias && !column_part) of_samples.sum(group * alike, group_end * alike, vectors, tile == 0, target, width, dbias);
      if (!dvalues) continue;
      pack_tile(t, tile, column, column_end, columns, x, of_columns);
      for (int64_t g = group; g < group_end; ++g) {
        int64_t before;
        const SharedColumns<T> own = columns_between<T>(matrix, g, column, column_end, nullptr, &before);
        T* const of_group = sums + matrix.begin(g) + before * alike;
        of_sums.unpack({samples, width, alike, alike, nullptr}, target + g * alike * width, panel);
        k.correlate(own, vectors, samples, tile == 0, panel, of_columns, of_group);
        if (tile == t.tiles - 1) of_sums.unpack({alike, alike, own.pitch, own.count, nullptr}, of_group, dvalues + matrix.begin(g) + before);
      }
    }
  };
  parallel_for(grid.rows * grid.columns, threads, one);
}

#define INSTANTIATE(T, S)                                                                                                                \
  template void shared_rows_spmm<T, S>(const SharedRows&, const T*, const T*, const S*, S*, int64_t, int64_t, int64_t);                  \
  template void shared_rows_backward<T, S>(const SharedRows&, const T*, const S*, const S*, T*, S*, T*, int64_t, int64_t, int64_t);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, Bfloat16)
#undef INSTANTIATE

}  // namespace truesparse
