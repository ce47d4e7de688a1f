#include "matrix.h"

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "layout.h"
#include "run_kernels.h"
#include "threads.h"
#include "tiles.h"
#include "workspace.h"

namespace truesparse {
namespace {

constexpr int64_t prefetch_parts = 8;      // the next block is asked for in so many steps
constexpr int64_t all_sums = 512 << 10;    // bytes of packed target that are kept whole
constexpr int64_t chunk_of_values = 32768;  // gathered as one item of work

// For places of 16 bits and of 32.
template <class T>
struct Multiplier {
  const RunKernels<T, uint16_t>& narrow;
  const RunKernels<T, int32_t>& wide;

  explicit Multiplier(Isa isa) : narrow(run_kernels<T, uint16_t>(isa)), wide(run_kernels<T, int32_t>(isa)) {}
};

// Asks for part `part` of `parts` of the features `begin` to `end` of a tile, while the processor is busy multiplying.
template <class T, class S>
void prefetch_tile(const Tiling<T, S>& tiling, int64_t tile, int64_t part, int64_t parts, int64_t begin, int64_t end, int64_t features, const S* x) {
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(S));
  const auto rows = [&](const S* from, int64_t first, int64_t last, int64_t stride, int64_t first_entry, int64_t last_entry) {
    for (int64_t row = first; row < last; ++row)
      for (int64_t entry = first_entry; entry < last_entry; entry += line) __builtin_prefetch(from + row * stride + entry, 0, 2);
  };
  const int64_t samples = tiling.samples(tile), count = end - begin;
  if (tiling.pixels == 1)
    rows(x + tile * tiling.width() * features, samples * part / parts, samples * (part + 1) / parts, features, begin, end);
  else
    for_images(tiling, tile, features, [&](int64_t, int64_t own, int64_t first) {
      rows(x + first, begin + count * part / parts, begin + count * (part + 1) / parts, tiling.pixels, 0, own);
    });
}

// A piece that is read in `shares` shares, one after the other, for tiles of `vectors` vectors, `width` elements.
template <class T>
class Reading {
 public:
  Reading(const Runs& runs, const Multiplier<T>& k, int64_t block, int64_t part, int64_t vectors, int64_t width, int64_t shares)
      : runs_(runs), k_(k), count_(runs.count(block, part)), vectors_(vectors), width_(width), shares_(shares),
        narrow_(runs.cursor<uint16_t>(block, part)), wide_(runs.cursor<int32_t>(block, part)) {}

  void multiply(bool first, const T* values, const T* bias, const T* source, T* target) {
    next([&](const auto& kernels, auto& cursor, int64_t count, const auto& steps) {
      kernels.multiply(cursor, count, steps, first, values, bias, source, target);
    });
  }
  T* correlate(bool first, const T* source, const T* dtarget, T* sums) {
    next([&](const auto& kernels, auto& cursor, int64_t count, const auto& steps) {
      sums = kernels.correlate(cursor, count, steps, first, source, dtarget, sums);
    });
    return sums;
  }

 private:
  template <class Body>
  void next(Body&& body) {
    const int64_t count = count_ * (share_ + 1) / shares_ - count_ * share_ / shares_;
    ++share_;
    if (runs_.wide()) body(k_.wide, wide_, count, Steps<int32_t>{runs_.alike, vectors_, width_, width_});
    else body(k_.narrow, narrow_, count, Steps<uint16_t>{runs_.alike, vectors_, width_, width_});
  }

  const Runs& runs_;
  const Multiplier<T>& k_;
  int64_t count_, vectors_, width_, shares_, share_ = 0;
  RunCursor<uint16_t> narrow_;
  RunCursor<int32_t> wide_;
};

// All rows of one tile, whose sums all fit: each block is packed just before its use, always to the same place.
template <class T, class S>
void spmm_by_blocks(const Runs& runs, const Multiplier<T>& k, const Tiling<T, S>& t, int64_t tile, const T* values, const T* bias, const S* x, T* source,
                    T* target, S* y) {
  const int64_t width = t.vectors_of(tile) * t.k.lanes;
  for (int64_t block = 0; block < runs.blocks(); ++block) {
    const int64_t begin = block * runs.width, end = std::min(runs.columns, begin + runs.width), next = std::min(runs.columns, end + runs.width);
    pack_tile(t, tile, begin, end, runs.columns, x, source - begin * width);
    const int64_t shares = divide_up(prefetch_parts, runs.parts());
    for (int64_t part = 0; part < runs.parts(); ++part) {
      Reading<T> reading(runs, k, block, part, t.vectors_of(tile), width, shares);
      for (int64_t share = 0; share < shares; ++share) {
        prefetch_tile(t, tile, part * shares + share, runs.parts() * shares, end, next, runs.columns, x);
        reading.multiply(block == 0, values, bias, source, target);
      }
    }
  }
  unpack_tile(t, tile, 0, runs.rows, runs.rows, target, y);
}

// The rows of one part, of one packed tile. `values_of(block)` are counted from where the runs say.
template <class T, class S, class Values>
void spmm_part(const Runs& runs, const Multiplier<T>& k, const Tiling<T, S>& t, int64_t tile, int64_t part, Values&& values_of, const T* bias, const T* source,
               T* target, S* y) {
  const int64_t width = t.vectors_of(tile) * t.k.lanes, row = runs.part_begin(part);
  for (int64_t block = 0; block < runs.blocks(); ++block) {
    Reading<T> reading(runs, k, block, part, t.vectors_of(tile), width, 1);
    reading.multiply(block == 0, values_of(block), bias, source + block * runs.width * width, target - row * width);
  }
  unpack_tile(t, tile, row, runs.part_begin(part + 1), runs.rows, target, y);
}

// Adds one tile's share of dvalues for some parts of rows and one block of columns. x is packed just before its use, always to the same place.
// `sums` are in the order of the runs, from the first one of the block and part `part`.
template <class T, class S>
void correlate_block(const Runs& runs, const Multiplier<T>& k, const Tiling<T, S>& tiling, int64_t tile, int64_t part, int64_t part_end, int64_t block,
                     const S* x, const T* dtarget, T* source, T* sums) {
  const int64_t width = tiling.vectors_of(tile) * tiling.k.lanes;
  const int64_t first = block * runs.width, last = std::min(runs.columns, first + runs.width), next = std::min(runs.columns, last + runs.width);
  pack_tile(tiling, tile, first, last, runs.columns, x, source - first * width);
  const int64_t shares = divide_up(prefetch_parts, part_end - part);
  for (int64_t own = part; own < part_end; ++own) {
    Reading<T> reading(runs, k, block, own, tiling.vectors_of(tile), width, shares);
    for (int64_t share = 0; share < shares; ++share) {
      prefetch_tile(tiling, tile, (own - part) * shares + share, (part_end - part) * shares, last, next, runs.columns, x);
      sums = reading.correlate(tile == 0, source, dtarget, sums);
    }
  }
}

}  // namespace

template <class T, class S>
void matrix_spmv(const Matrix& matrix, const T* values, const T* bias, const S* x, S* y, int64_t batch, int64_t threads) {
  if (!batch || !matrix.rows) return;
  const Kernels<T, S>& k = kernels<T, S>(current_isa());
  const auto parts = partition(matrix.rows, matrix.indptr, threads > 1 && matrix.indptr[matrix.rows] > 16384 ? 2 * threads : 1);
  const auto run = [&](const T* from, T* to) {
    parallel_for(static_cast<int64_t>(parts.size()) - 1, threads, [&](int64_t, int64_t part) {
      for (int64_t sample = 0; sample < batch; ++sample)
        k.spmv({parts[part], parts[part + 1], matrix.indptr, matrix.indptr + 1, matrix.indices, values, 1, 1}, bias, from + sample * matrix.columns,
               to + sample * matrix.rows);
    });
  };
  if constexpr (std::is_same_v<T, S>) {
    run(x, y);
  } else {  // narrow ones are widened before, and their sums narrowed after
    const int64_t inputs = batch * matrix.columns, outputs = batch * matrix.rows;
    const Workspace scratch(lines<T>(inputs) + lines<T>(outputs));
    T *from = scratch.as<T>(), *to = scratch.as<T>(lines<T>(inputs));
    k.widen(x, inputs, from);
    run(from, to);
    k.narrow(to, outputs, y);
  }
}

template <class T, class S>
void matrix_spmm(const Runs& runs, const T* values, const T* bias, const S* x, S* y, int64_t batch, int64_t pixels, int64_t threads) {
  if (!batch || !runs.rows) return;
  const Isa isa = isa_for<T>(batch);
  const Multiplier<T> k(isa);
  const Tiling<T, S> t = tiling(kernels<T, S>(isa), k.narrow.tile_vectors, batch, pixels, threads);
  const int64_t width = t.width();
  const bool all_fit = runs.rows * width * static_cast<int64_t>(sizeof(T)) <= all_sums;
  const bool by_blocks = t.tiles >= threads && all_fit;
  const size_t source_bytes = lines<T>((by_blocks ? std::min(runs.width, runs.columns) : runs.columns) * width);
  const size_t target_bytes = lines<T>((by_blocks ? runs.rows : runs.most_rows()) * width);
  const auto values_of = [&](int64_t) { return values; };
  if (t.tiles >= threads) {
    const Workspace scratch((source_bytes + target_bytes) * threads);
    parallel_for(t.tiles, threads, [&](int64_t slot, int64_t tile) {
      T* source = scratch.as<T>((source_bytes + target_bytes) * slot);
      T* target = scratch.as<T>((source_bytes + target_bytes) * slot + source_bytes);
      if (by_blocks) return spmm_by_blocks(runs, k, t, tile, values, bias, x, source, target, y);
      pack_tile(t, tile, 0, runs.columns, runs.columns, x, source);
      for (int64_t part = 0; part < runs.parts(); ++part) spmm_part(runs, k, t, tile, part, values_of, bias, source, target, y);
    });
    return;
  }
  // Fewer tiles than threads: the rows of a tile are shared out.
  const Workspace scratch(source_bytes * t.tiles + target_bytes * threads);
  const int64_t chunks = divide_up(runs.columns, chunk_of_features), ready = t.tiles * chunks;
  auto one = [&](int64_t slot, int64_t item) {
    if (item < ready) {
      const int64_t tile = item / chunks, begin = item % chunks * chunk_of_features;
      pack_tile(t, tile, begin, std::min(runs.columns, begin + chunk_of_features), runs.columns, x, scratch.as<T>(source_bytes * tile));
    } else {
      const int64_t tile = (item - ready) / runs.parts(), part = (item - ready) % runs.parts();
      spmm_part(runs, k, t, tile, part, values_of, bias, scratch.as<T>(source_bytes * tile), scratch.as<T>(source_bytes * t.tiles + target_bytes * slot), y);
    }
  };
  parallel_for(ready + t.tiles * runs.parts(), threads, one, ready);
}

// Threads share no packed data: another core's cache is slower to read than a tile is to pack again. Each takes the connections of
// some rows and some columns for dvalues, and of some tiles and the same columns for dx. Every sum has one owner and one order.
template <class T, class S>
void matrix_backward(const Runs* runs, const Runs* transposed, const T* values, const S* dy, const S* x, T* dvalues, S* dx, T* dbias, int64_t rows,
                     int64_t batch, int64_t pixels, int64_t threads) {
  if (!batch) {
    if (dvalues) std::fill(dvalues, dvalues + runs->nnz, T(0));
    if (dbias) std::fill(dbias, dbias + rows, T(0));
    return;
  }
  if (!dx) transposed = nullptr;
  if (!dvalues) runs = nullptr;
  if (!dx && !dvalues && !dbias) return;

  const Isa isa = isa_for<T>(batch);
  const Multiplier<T> k(isa);
  const Tiling<T, S> t = tiling(kernels<T, S>(isa), k.narrow.tile_vectors, batch, pixels, 1);  // the sums must not depend on the number of threads
  const int64_t width = t.width();
  BackwardWork work{rows, t.tiles};
  if (runs) work.dvalues = {runs->nnz, runs->columns, runs->parts(), runs->blocks()};
  if (transposed) work.dx = {transposed->nnz, transposed->parts()};
  const Grid grid = share(work, threads);
  const bool once = t.tiles == 1;  // then values are gathered, and dvalues scattered, piece by piece

  const size_t target_bytes = lines<T>(rows * width);
  const size_t gathered_bytes = dx ? lines<T>(once ? transposed->most_connections() : transposed->nnz) : 0;
  const size_t sums_bytes = dvalues ? lines<T>(once ? runs->most_connections() * runs->parts() : runs->nnz) : 0;
  const size_t source_bytes = dvalues ? lines<T>(std::min(runs->width, runs->columns) * width) : 0;
  const size_t dsource_bytes = dx ? lines<T>(transposed->most_rows() * width) : 0;
  const size_t moved_bytes = gathered_bytes + sums_bytes, common_bytes = once ? 0 : moved_bytes;
  const size_t own_bytes = target_bytes + source_bytes + dsource_bytes + (once ? moved_bytes : 0);
  const Workspace scratch(common_bytes + own_bytes * threads);
  const int64_t chunks = dx && !once ? divide_up(transposed->nnz, chunk_of_values) : 0;

  auto one = [&](int64_t slot, int64_t item) {
    T* const dtarget = scratch.as<T>(common_bytes + own_bytes * slot);
    T* const source = dtarget + target_bytes / sizeof(T);
    T* const dsource = source + source_bytes / sizeof(T);
    T* const gathered = once ? dsource + dsource_bytes / sizeof(T) : scratch.as<T>();
    T* const sums = gathered + gathered_bytes / sizeof(T);
    const auto gather = [&](int64_t begin, int64_t count, T* to) { t.k.gather(values, transposed->at() + begin, count, to); };
    if (item < chunks) {
      const int64_t begin = item * chunk_of_values;
      return gather(begin, std::min(transposed->nnz - begin, chunk_of_values), gathered + begin);
    }
    const int64_t row_part = (item - chunks) / grid.columns, column_part = (item - chunks) % grid.columns;
    const auto [part, part_end] = part_of(runs ? runs->parts() : 1, grid.rows, row_part);
    const auto [block, block_end] = part_of(runs ? runs->blocks() : 0, grid.columns, column_part);
    const int64_t row = runs ? runs->part_begin(part) : part * rows, row_end = runs ? runs->part_begin(part_end) : part_end * rows;
    for (int64_t tile = 0; tile < t.tiles; ++tile) {
      const bool own_tile = dx && tile % grid.rows == row_part;
      if (own_tile) pack_tile(t, tile, 0, rows, rows, dy, dtarget);
      else pack_tile(t, tile, row, row_end, rows, dy, dtarget);
      if (own_tile) {
        const auto [own, own_end] = part_of(transposed->parts(), grid.columns, column_part);
        for (int64_t i = own; i < own_end; ++i) {
          const auto values_of = [&](int64_t b) -> const T* {
            if (!once) return gathered;
            const int64_t begin = transposed->connections_begin(b, i);
            gather(begin, transposed->connections(b, i), gathered);
            return gathered - begin;
          };
          spmm_part(*transposed, k, t, tile, i, values_of, static_cast<const T*>(nullptr), dtarget, dsource, dx);
        }
      }
      if (dbias && !column_part) t.k.sum(row, row_end, t.vectors_of(tile), tile == 0, dtarget, t.vectors_of(tile) * t.k.lanes, dbias);
      for (int64_t b = block; b < block_end && part < part_end; ++b) {
        T* const of_block = once ? sums : sums + runs->connections_begin(b, part);
        correlate_block(*runs, k, t, tile, part, part_end, b, x, dtarget, source, of_block);
        if (tile == t.tiles - 1) runs->scatter(b, part, part_end, of_block, dvalues);
      }
    }
  };
  parallel_for(chunks + grid.rows * grid.columns, threads, one, chunks);
}

#define INSTANTIATE(T, S)                                                                                                                     \
  template void matrix_spmv<T, S>(const Matrix&, const T*, const T*, const S*, S*, int64_t, int64_t);                                         \
  template void matrix_spmm<T, S>(const Runs&, const T*, const T*, const S*, S*, int64_t, int64_t, int64_t);                                  \
  template void matrix_backward<T, S>(const Runs*, const Runs*, const T*, const S*, const S*, T*, S*, T*, int64_t, int64_t, int64_t, int64_t);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, Bfloat16)
#undef INSTANTIATE

}  // namespace truesparse
