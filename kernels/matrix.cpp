#include "matrix.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "kernels.h"
#include "threads.h"
#include "workspace.h"

namespace truesparse {
namespace {

constexpr int64_t nearest_cache = 40 << 10;   // bytes of packed source per block: most of a first-level cache
constexpr int64_t prefetch_parts = 8;           // the next block is asked for in so many steps
constexpr int64_t all_sums = 512 << 10;         // bytes of packed target that are kept whole
constexpr int64_t some_sums = 128 << 10;        // bytes of packed target at a time otherwise
constexpr int64_t chunk_of_features = 256;      // packed as one item of work
constexpr int64_t chunk_of_values = 32768;      // gathered as one item of work

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How the batch is cut into tiles of `vectors` vectors. `pixels` samples of one feature are side by side in the user's tensors: 1 in a
// matrix, height x width in images of which each pixel is a sample.
template <class T, class S>
struct Tiling {
  const Kernels<T, S>& k;
  int64_t batch, pixels, vectors, tiles;

  int64_t width() const { return vectors * k.lanes; }
  int64_t samples(int64_t tile) const { return std::min(width(), batch - tile * width()); }
  int64_t vectors_of(int64_t tile) const { return divide_up(samples(tile), k.lanes); }
};

// As few tiles as possible, of equal size; as many as there are threads when two vectors or more remain for each.
template <class T, class S>
Tiling<T, S> tiling(const Kernels<T, S>& k, int64_t batch, int64_t pixels, int64_t threads) {
  const int64_t all = divide_up(batch, k.lanes);
  int64_t tiles = divide_up(all, k.tile_vectors);
  const int64_t even = divide_up(tiles, threads) * threads;
  if (all / even >= 2) tiles = even;
  const int64_t vectors = divide_up(all, tiles);
  return {k, batch, pixels, vectors, divide_up(all, vectors)};
}

// Calls body(samples before it in the tile, samples, where its first feature is) for each image that a tile has samples of.
template <class T, class S, class Body>
void for_images(const Tiling<T, S>& tiling, int64_t tile, int64_t features, Body&& body) {
  const int64_t samples = tiling.samples(tile);
  for (int64_t done = 0, count = 0; done < samples; done += count) {
    const int64_t sample = tile * tiling.width() + done, pixel = sample % tiling.pixels;
    count = std::min(tiling.pixels - pixel, samples - done);
    body(done, count, (sample - pixel) * features + pixel);
  }
}

// Features `begin` to `end` of a tile. Images are feature-major already: their rows are only brought together.
template <class T, class S>
void pack_tile(const Tiling<T, S>& tiling, int64_t tile, int64_t begin, int64_t end, int64_t features, const S* plain, T* packed) {
  const int64_t width = tiling.vectors_of(tile) * tiling.k.lanes, samples = tiling.samples(tile);
  if (tiling.pixels == 1) {
    tiling.k.pack({samples, width, features, end - begin, nullptr}, plain + tile * tiling.width() * features + begin, packed + begin * width);
    return;
  }
  for_images(tiling, tile, features, [&](int64_t done, int64_t count, int64_t first) {
    for (int64_t i = begin; i < end; ++i) tiling.k.widen(plain + first + i * tiling.pixels, count, packed + i * width + done);
  });
  if (samples < width)
    for (int64_t i = begin; i < end; ++i) std::fill(packed + i * width + samples, packed + (i + 1) * width, T(0));
}

// The other way; `packed` begins with feature `begin`.
template <class T, class S>
void unpack_tile(const Tiling<T, S>& tiling, int64_t tile, int64_t begin, int64_t end, int64_t features, const T* packed, S* plain) {
  const int64_t width = tiling.vectors_of(tile) * tiling.k.lanes;
  if (tiling.pixels == 1) {
    tiling.k.unpack({tiling.samples(tile), width, features, end - begin, nullptr}, packed, plain + tile * tiling.width() * features + begin);
    return;
  }
  for_images(tiling, tile, features, [&](int64_t done, int64_t count, int64_t first) {
    for (int64_t i = begin; i < end; ++i) tiling.k.narrow(packed + (i - begin) * width + done, count, plain + first + i * tiling.pixels);
  });
}

// Blocks of the layout that are walked as one, so that their packed source fills the nearest cache.
template <class T>
int64_t blocks_at_once(const Layout& layout, int64_t width) {
  return std::max<int64_t>(1, nearest_cache / std::max<int64_t>(1, layout.width * width * static_cast<int64_t>(sizeof(T))));
}

template <class T>
int64_t rows_at_once(const Layout& layout, int64_t width) {
  const int64_t all = layout.rows * width * static_cast<int64_t>(sizeof(T));
  return all <= all_sums ? layout.rows : std::max<int64_t>(1, some_sums / (width * static_cast<int64_t>(sizeof(T))));
}

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

// Rows `begin` to `end` of a packed block of one tile. target: [end - begin, width] scratch.
template <class T, class S>
void spmm_block(const Layout& layout, const Tiling<T, S>& tiling, int64_t tile, int64_t begin, int64_t end, int64_t block, const T* values, const T* bias,
                const T* source, T* target) {
  const int64_t vectors = tiling.vectors_of(tile), width = vectors * tiling.k.lanes;
  const Connections<T> c{begin, end, layout.start(block), layout.start(block + blocks_at_once<T>(layout, width)), layout.indices, values, width, layout.alike};
  tiling.k.spmm(c, vectors, block == 0, bias, source, target, width);
}

// Rows `begin` to `end` of one packed tile, some at a time, so that their sums stay in the second-level cache.
template <class T, class S>
void spmm_rows(const Layout& layout, const Tiling<T, S>& tiling, int64_t tile, int64_t begin, int64_t end, const T* values, const T* bias,
               const T* source, T* target, S* y) {
  const int64_t width = tiling.vectors_of(tile) * tiling.k.lanes, rows = rows_at_once<T>(layout, tiling.width());
  for (int64_t row = begin; row < end; row += rows) {
    const int64_t last = std::min(end, row + rows);
    for (int64_t block = 0; block < layout.blocks; block += blocks_at_once<T>(layout, width))
      spmm_block(layout, tiling, tile, row, last, block, values, bias, source, target - row * width);
    unpack_tile(tiling, tile, row, last, layout.rows, target, y);
  }
}

// One tile whose sums all fit: each block is packed just before its use, always to the same place.
template <class T, class S>
void spmm_by_blocks(const Layout& layout, const Tiling<T, S>& tiling, int64_t tile, const T* values, const T* bias, const S* x, T* source, T* target, S* y) {
  constexpr int64_t parts = prefetch_parts;
  const int64_t width = tiling.vectors_of(tile) * tiling.k.lanes, together = blocks_at_once<T>(layout, width);
  for (int64_t block = 0; block < layout.blocks; block += together) {
    const int64_t begin = block * layout.width, end = std::min(layout.columns, begin + together * layout.width);
    const int64_t next = std::min(layout.columns, end + together * layout.width);
    pack_tile(tiling, tile, begin, end, layout.columns, x, source - begin * width);
    for (int64_t part = 0; part < parts; ++part) {
      prefetch_tile(tiling, tile, part, parts, end, next, layout.columns, x);
      spmm_block(layout, tiling, tile, layout.rows * part / parts, layout.rows * (part + 1) / parts, block, values, bias, source - begin * width, target);
    }
  }
  unpack_tile(tiling, tile, 0, layout.rows, layout.rows, target, y);
}

template <class T, class S>
bool too_few_for_a_tile(const Kernels<T, S>& k, int64_t batch) {
  return batch == 1 || batch * 4 < k.lanes;
}

// A few samples, one after the other: a tile would be mostly empty lanes. Narrow ones are widened before, and their sums narrowed after.
template <class T, class S>
void spmv(const Kernels<T, S>& k, const Layout& layout, const T* values, const T* bias, const S* x, S* y, int64_t batch, int64_t threads) {
  const auto parts = partition(layout, threads > 1 && layout.nnz() > 16384 ? 2 * threads : 1);
  const auto run = [&](const T* from, T* to) {
    parallel_for(static_cast<int64_t>(parts.size()) - 1, threads, [&](int64_t, int64_t part) {
      for (int64_t sample = 0; sample < batch; ++sample)
        k.spmv({parts[part], parts[part + 1], layout.indptr, layout.indptr + 1, layout.indices, values, 1, 1}, bias,
               from + sample * layout.columns, to + sample * layout.rows);
    });
  };
  if constexpr (std::is_same_v<T, S>) {
    run(x, y);
  } else {
    const int64_t inputs = batch * layout.columns, outputs = batch * layout.rows;
    const Workspace scratch(lines<T>(inputs) + lines<T>(outputs));
    T *from = scratch.as<T>(), *to = scratch.as<T>(lines<T>(inputs));
    k.widen(x, inputs, from);
    run(from, to);
    k.narrow(to, outputs, y);
  }
}

// One tile's part of dvalues for some rows and one block of columns. x is packed just before its use, always to the same place.
template <class T, class S>
void sddmm_block(const Layout& layout, const Tiling<T, S>& tiling, int64_t tile, int64_t begin, int64_t end, int64_t block, const S* x, const T* dtarget,
                 T* source, T* dvalues) {
  const int64_t vectors = tiling.vectors_of(tile), width = vectors * tiling.k.lanes, together = blocks_at_once<T>(layout, tiling.width());
  const int64_t first = block * layout.width, last = std::min(layout.columns, first + together * layout.width);
  const int64_t next = std::min(layout.columns, last + together * layout.width);
  const int64_t parts = prefetch_parts, height = end - begin;
  source -= first * width;
  pack_tile(tiling, tile, first, last, layout.columns, x, source);
  for (int64_t part = 0; part < parts; ++part) {
    prefetch_tile(tiling, tile, part, parts, last, next, layout.columns, x);
    const Connections<T> c{begin + height * part / parts, begin + height * (part + 1) / parts, layout.start(block), layout.start(block + together),
                           layout.indices, nullptr, width, layout.alike};
    tiling.k.sddmm(c, vectors, tile == 0, source, dtarget, width, dvalues);
  }
}

// How the work of the backward is shared out: parts of rows (of tiles, for dx) times parts of columns.
struct Grid {
  int64_t rows, columns;
};

// What each thread packs for itself is dy for each part of columns and x for each part of rows. Few blocks of columns or few tiles make
// uneven parts. The cheapest for the thread that has most to do:
Grid share(const Layout& layout, bool dvalues, bool dx, int64_t blocks, int64_t tiles, int64_t threads) {
  constexpr double pack_cost = 12;  // of a feature, in connections
  const auto largest = [](int64_t whole, int64_t parts) { return static_cast<double>(divide_up(whole, parts)) / static_cast<double>(std::max<int64_t>(1, whole)); };
  Grid best{1, 1};
  double least = 1e300;
  for (int64_t columns = 1; columns <= threads; ++columns) {
    const int64_t rows = threads / columns;
    const double of_rows = largest(layout.rows, rows), of_tiles = largest(tiles, rows), of_blocks = largest(blocks, columns);
    double cost = static_cast<double>(layout.rows) * pack_cost;
    if (dvalues) cost += of_blocks * (of_rows * static_cast<double>(layout.nnz()) + static_cast<double>(layout.columns) * pack_cost);
    if (dx) cost += of_tiles * static_cast<double>(layout.nnz()) / static_cast<double>(columns);
    if (cost < least) {
      least = cost;
      best = {rows, columns};
    }
  }
  return best;
}

}  // namespace

template <class T, class S>
void matrix_spmm(const Layout& layout, const T* values, const T* bias, const S* x, S* y, int64_t batch, int64_t pixels,
                 int64_t threads) {
  if (!batch || !layout.rows) return;
  const Kernels<T, S>& k = kernels<T, S>(current_isa());
  if (pixels == 1 && too_few_for_a_tile(k, batch)) return spmv(k, layout, values, bias, x, y, batch, threads);
  const Tiling<T, S> t = tiling(k, batch, pixels, threads);
  const int64_t width = t.width();
  const size_t source_bytes = lines<T>(layout.columns * width), target_bytes = lines<T>(std::min(layout.rows, rows_at_once<T>(layout, width)) * width);
  if (t.tiles >= threads) {
    const Workspace scratch((source_bytes + target_bytes) * threads);
    parallel_for(t.tiles, threads, [&](int64_t slot, int64_t tile) {
      T* source = scratch.as<T>((source_bytes + target_bytes) * slot);
      T* target = scratch.as<T>((source_bytes + target_bytes) * slot + source_bytes);
      if (rows_at_once<T>(layout, width) >= layout.rows) return spmm_by_blocks(layout, t, tile, values, bias, x, source, target, y);
      pack_tile(t, tile, 0, layout.columns, layout.columns, x, source);
      spmm_rows(layout, t, tile, 0, layout.rows, values, bias, source, target, y);
    });
    return;
  }
  // Fewer tiles than threads: the rows of a tile are shared out.
  const Workspace scratch(source_bytes * t.tiles + target_bytes * threads);
  const int64_t chunks = divide_up(layout.columns, chunk_of_features);
  const auto rows = partition(layout, 2 * divide_up(threads, t.tiles));
  const int64_t parts = static_cast<int64_t>(rows.size()) - 1, ready = t.tiles * chunks;
  auto one = [&](int64_t slot, int64_t item) {
    if (item < ready) {
      const int64_t tile = item / chunks, begin = item % chunks * chunk_of_features;
      pack_tile(t, tile, begin, std::min(layout.columns, begin + chunk_of_features), layout.columns, x, scratch.as<T>(source_bytes * tile));
    } else {
      const int64_t tile = (item - ready) / parts, part = (item - ready) % parts;
      spmm_rows(layout, t, tile, rows[part], rows[part + 1], values, bias, scratch.as<T>(source_bytes * tile),
                scratch.as<T>(source_bytes * t.tiles + target_bytes * slot), y);
    }
  };
  parallel_for(ready + t.tiles * parts, threads, one, ready);
}

// Threads share no packed data: another core's cache is slower to read than a tile is to pack again. Each takes the connections of
// some rows and some columns for dvalues, and of some tiles and the same columns for dx. Every sum has one owner and one order.
template <class T, class S>
void matrix_backward(const Layout& layout, const Layout* transposed, const T* values, const S* dy, const S* x, T* dvalues, S* dx, T* dbias,
                     int64_t batch, int64_t pixels, int64_t threads) {
  const Kernels<T, S>& k = kernels<T, S>(current_isa());
  if (!batch) {
    if (dvalues) std::fill(dvalues, dvalues + layout.nnz(), T(0));
    if (dbias) std::fill(dbias, dbias + layout.rows, T(0));
    return;
  }
  if (dx && pixels == 1 && too_few_for_a_tile(k, batch)) {
    const Workspace gathered(lines<T>(layout.nnz()));
    gather(*transposed, values, gathered.as<T>(), threads);
    spmv(k, *transposed, gathered.as<T>(), static_cast<const T*>(nullptr), dy, dx, batch, threads);
    dx = nullptr;
  }
  if (!dx && !dvalues && !dbias) return;

  const Tiling<T, S> t = tiling(k, batch, pixels, 1);  // the sums must not depend on the number of threads
  const int64_t width = t.width(), together = blocks_at_once<T>(layout, width), blocks = divide_up(layout.blocks, together);
  const Grid grid = share(layout, dvalues, dx, blocks, t.tiles, threads);
  const auto rows = partition(layout, grid.rows);
  const auto columns = dx ? partition(*transposed, grid.columns) : std::vector<int64_t>{};
  const auto part_of = [](const std::vector<int64_t>& bounds, int64_t part) {
    const auto last = static_cast<int64_t>(bounds.size()) - 1;
    return std::pair(bounds[std::min(part, last)], bounds[std::min(part + 1, last)]);
  };

  const size_t gathered_bytes = dx ? lines<T>(layout.nnz()) : 0, target_bytes = lines<T>(layout.rows * width);
  const size_t source_bytes = dvalues ? lines<T>(together * layout.width * width) : 0;
  const size_t sums_bytes = dx ? lines<T>(std::min(layout.columns, rows_at_once<T>(*transposed, width)) * width) : 0;
  const size_t own_bytes = target_bytes + std::max(source_bytes, sums_bytes);
  const Workspace scratch(gathered_bytes + own_bytes * threads);
  T* gathered = scratch.as<T>();
  const int64_t chunks = dx ? divide_up(layout.nnz(), chunk_of_values) : 0;

  auto one = [&](int64_t slot, int64_t item) {
    if (item < chunks) {
      const int64_t begin = item * chunk_of_values;
      k.gather(values, transposed->permutation + begin, std::min(layout.nnz() - begin, chunk_of_values), gathered + begin);
      return;
    }
    const int64_t row_part = (item - chunks) / grid.columns, column_part = (item - chunks) % grid.columns;
    const auto [row, row_end] = part_of(rows, row_part);
    T* dtarget = scratch.as<T>(gathered_bytes + own_bytes * slot);
    T* own = dtarget + target_bytes / sizeof(T);
    for (int64_t tile = 0; tile < t.tiles; ++tile) {
      const bool own_tile = dx && tile % grid.rows == row_part;
      if (own_tile) pack_tile(t, tile, 0, layout.rows, layout.rows, dy, dtarget);
      else pack_tile(t, tile, row, row_end, layout.rows, dy, dtarget);
      if (own_tile) {
        const auto [column, column_end] = part_of(columns, column_part);
        spmm_rows(*transposed, t, tile, column, column_end, gathered, static_cast<const T*>(nullptr), dtarget, own, dx);
      }
      if (dbias && !column_part) k.sum(row, row_end, t.vectors_of(tile), tile == 0, dtarget, t.vectors_of(tile) * k.lanes, dbias);
      if (!dvalues) continue;
      for (int64_t block = blocks * column_part / grid.columns; block < blocks * (column_part + 1) / grid.columns; ++block)
        sddmm_block(layout, t, tile, row, row_end, block * together, x, dtarget, own, dvalues);
    }
  };
  parallel_for(chunks + grid.rows * grid.columns, threads, one, chunks);
}

#define INSTANTIATE(T, S)                                                                                                  \
  template void matrix_spmm<T, S>(const Layout&, const T*, const T*, const S*, S*, int64_t, int64_t, int64_t);             \
  template void matrix_backward<T, S>(const Layout&, const Layout*, const T*, const S*, const S*, T*, S*, T*, int64_t, int64_t, int64_t);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, Bfloat16)
#undef INSTANTIATE

}  // namespace truesparse
