// How are many samples cut into packed tiles, [features, samples], and these shared out among threads?
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "isa.h"
#include "kernels.h"

namespace truesparse {

constexpr int64_t tile_bytes = 256;         // of a feature, at most: a block of columns then has as many as a run needs to be long
constexpr int64_t chunk_of_features = 256;  // packed as one item of work

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The instruction set in force; vectors half as wide where a batch fills no more than two: one would make each sum a chain of its own.
template <class T>
Isa isa_for(int64_t batch) {
  const Isa isa = current_isa();
  return isa == Isa::avx512 && isa_supported(Isa::avx2) && batch <= 2 * kernels<T>(Isa::avx2).lanes ? Isa::avx2 : isa;
}

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
Tiling<T, S> tiling(const Kernels<T, S>& k, int64_t most_vectors, int64_t batch, int64_t pixels, int64_t threads) {
  const int64_t most = std::clamp<int64_t>(tile_bytes / (k.lanes * static_cast<int64_t>(sizeof(T))), 1, most_vectors);
  const int64_t all = divide_up(batch, k.lanes);
  int64_t tiles = divide_up(all, most);
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

// What the backward multiplies and adds, and into how many parts it can be cut at most. dy is packed [rows], of all tiles.
struct BackwardWork {
  int64_t rows, tiles;
  struct {
    int64_t products = 0, columns = 0, row_parts = 1, column_parts = 1;  // of a sample; x is packed [columns]
  } dvalues = {};
  struct {
    int64_t products = 0, parts = 1;  // of each tile
  } dx = {};
};

// How it is shared out: parts of rows (of tiles, for dx) times parts of columns.
struct Grid {
  int64_t rows, columns;
};

// What each thread packs for itself is dy for each part of columns and x for each part of rows. Few parts or few tiles make uneven shares.
// The cheapest for the thread that has most to do:
inline Grid share(const BackwardWork& work, int64_t threads) {
  constexpr double pack_cost = 12;  // of a feature, in connections
  const auto largest = [](int64_t whole, int64_t parts) {
    return static_cast<double>(divide_up(whole, parts)) / static_cast<double>(std::max<int64_t>(1, whole));
  };
  const auto& [products, source, row_parts, column_parts] = work.dvalues;
  Grid best{1, 1};
  double least = 1e300;
  for (int64_t columns = 1; columns <= threads; ++columns) {
    const int64_t rows = threads / columns;
    double cost = static_cast<double>(work.rows) * pack_cost;
    cost += largest(column_parts, columns) * (largest(row_parts, rows) * static_cast<double>(products) + static_cast<double>(source) * pack_cost);
    cost += largest(work.tiles, rows) * largest(work.dx.parts, columns) * static_cast<double>(work.dx.products);
    if (cost < least) {
      least = cost;
      best = {rows, columns};
    }
  }
  return best;
}

inline std::pair<int64_t, int64_t> part_of(int64_t whole, int64_t parts, int64_t part) { return {whole * part / parts, whole * (part + 1) / parts}; }

}  // namespace truesparse
