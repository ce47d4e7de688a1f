#include "convolution.h"

#include <algorithm>

#include "kernels.h"
#include "layout.h"
#include "planes.h"
#include "run_kernels.h"
#include "threads.h"
#include "workspace.h"

namespace truesparse {
namespace {

constexpr int64_t second_cache = 3 << 20;    // bytes of packed planes per chunk, a little more than the second-level cache has
constexpr int64_t most_slots = 16;           // partial sums of dvalues; fixed, so that sums do not depend on the number of threads

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How one call is cut: `width` samples side by side, and bands of rows so that a chunk stays in the second-level cache.
struct Cut {
  Pair size, output, reach;  // reach: rows and columns from the first to the last tap, in output positions
  int64_t batch, width, pitch, rows, band, slack;

  int64_t groups() const { return divide_up(batch, width); }
  int64_t bands() const { return divide_up(rows, band); }
  int64_t chunks() const { return groups() * bands(); }
};

// Samples side by side make aligned vectors; samples that do not exist make empty lanes.
template <class T, class S>
int64_t samples_side_by_side(const Kernels<T, S>& k, int64_t batch) {
  int64_t best = 1;
  double least = 1e300;
  for (int64_t width = 1; width <= k.lanes; width *= 2) {
    const double cost = static_cast<double>(divide_up(batch, width) * width) * (width == k.lanes ? 1.0 : 2 * width == k.lanes ? 1.3 : 1.6);
    if (cost <= least) {
      least = cost;
      best = width;
    }
  }
  return best;
}

template <class T, class S>
Cut cut(const Kernels<T, S>& k, const Convolution& c, int64_t batch, Pair size, bool backward, int64_t least_chunks) {
  Cut cut{};
  cut.size = size;
  cut.output = {c.output(size.height, &Pair::height), c.output(size.width, &Pair::width)};
  cut.reach = {(c.kernel.height - 1) * c.dilation.height / c.stride.height, (c.kernel.width - 1) * c.dilation.width / c.stride.width};
  cut.batch = batch;
  cut.width = samples_side_by_side(k, batch);
  const Pair phase{divide_up(size.height + c.padding.height, c.stride.height), divide_up(size.width + c.padding.width, c.stride.width)};
  cut.pitch = std::max(phase.width, cut.output.width + (backward ? cut.reach.width : 0));
  cut.rows = backward ? std::max(cut.output.height, phase.height) : cut.output.height;
  cut.slack = cut.reach.width + k.lanes / cut.width + 1;
  const int64_t channels = c.in_channels * c.phases() + c.out_channels;
  const int64_t row = cut.pitch * cut.width * channels * static_cast<int64_t>(sizeof(T)) * (backward ? 2 : 1);
  cut.band = std::clamp<int64_t>((second_cache - row * cut.reach.height / 2) / std::max<int64_t>(1, row), 1, cut.rows);
  if (cut.chunks() < least_chunks) cut.band = divide_up(cut.rows, std::min(cut.rows, divide_up(least_chunks, std::max<int64_t>(1, cut.groups()))));
  cut.band = divide_up(cut.rows, cut.bands());
  return cut;
}

template <class T>
using Multiplier = RunKernels<T, int32_t>;

// Calls body(vectors, position) for every tile of `elements` packed elements.
template <class T, class Body>
void for_tiles(const Multiplier<T>& k, int64_t lanes, int64_t elements, Body&& body) {
  const int64_t vectors = divide_up(elements, lanes), tiles = divide_up(vectors, k.tile_vectors), each = divide_up(vectors, std::max<int64_t>(1, tiles));
  for (int64_t v = 0; v < vectors; v += each) body(std::min(each, vectors - v), v * lanes);
}

// Block after block and tile after tile: body(runs of the block, how many, their steps, position of the tile).
template <class T, class Body>
void for_blocks(const Runs& runs, const Multiplier<T>& k, int64_t lanes, const int32_t* offsets, int64_t unit, int64_t stride, int64_t elements,
                Body&& body) {
  for (int64_t block = 0; block < runs.blocks(); ++block)
    for_tiles(k, lanes, elements, [&](int64_t vectors, int64_t at) {
      const RunCursor<uint16_t> cursor = runs.cursor<uint16_t>(block, 0);
      const Steps<int32_t> steps{runs.alike, vectors, unit, stride};
      body(block, RunCursor<int32_t>{cursor.row, cursor.length, cursor.start, offsets + runs.places_begin(block, 0)}, steps, at);
    });
}

template <class T>
void spmm_planes(const Runs& runs, const Multiplier<T>& k, int64_t lanes, const int32_t* offsets, const T* values, const T* bias, int64_t unit,
                 int64_t elements, const T* source, T* target, int64_t stride) {
  for_blocks(runs, k, lanes, offsets, unit, stride, elements, [&](int64_t block, RunCursor<int32_t> cursor, const Steps<int32_t>& steps, int64_t at) {
    k.multiply(cursor, runs.count(block, 0), steps, block == 0, values, bias, source + at, target + at);
  });
}

// offset_of(row, column) of each connection, in the order of the runs; rows that are alike have one.
template <class Offset>
void fill_offsets(const Runs& runs, Offset&& offset_of, int32_t* offsets) {
  for (int64_t block = 0; block < runs.blocks(); ++block) {
    RunCursor<uint16_t> cursor = runs.cursor<uint16_t>(block, 0);
    for (int64_t run = runs.count(block, 0); run > 0; --run, cursor.place += *cursor.length++, ++cursor.row)
      for (int64_t p = 0; p < *cursor.length; ++p) *offsets++ = static_cast<int32_t>(offset_of(*cursor.row, block * runs.width + cursor.place[p]));
  }
}

// Positions from a channel's first packed position to each connection's, for outputs at the same position.
void forward_offsets(const Convolution& c, const Cut& cut, const Runs& runs, int64_t plane, int32_t* offsets) {
  std::vector<int64_t> of_column(runs.columns);
  for (int64_t i = 0; i < runs.columns; ++i) {
    const int64_t h = i / c.kernel.width % c.kernel.height * c.dilation.height, w = i % c.kernel.width * c.dilation.width;
    const int64_t phase = h % c.stride.height * c.stride.width + w % c.stride.width;
    of_column[i] = (i / c.taps() * c.phases() + phase) * plane + h / c.stride.height * cut.pitch + w / c.stride.width;
  }
  const int64_t group = c.channels_per_group() * c.phases() * plane, rows_per_group = std::max<int64_t>(1, runs.rows / c.groups);
  fill_offsets(runs, [&](int64_t row, int64_t column) { return of_column[column] + row / rows_per_group * group; }, offsets);
}

// The same through the transposed matrix: an input sees the outputs that lie before it.
void backward_offsets(const Convolution& c, const Cut& cut, const Runs& transposed, int64_t plane, int32_t* offsets) {
  std::vector<int64_t> of_column(transposed.columns);
  for (int64_t i = 0; i < transposed.columns; ++i) {
    const int64_t tap = i % c.taps(), h = tap / c.kernel.width * c.dilation.height / c.stride.height;
    const int64_t w = tap % c.kernel.width * c.dilation.width / c.stride.width;
    of_column[i] = i / c.taps() * plane + (cut.reach.height - h) * cut.pitch + cut.reach.width - w;
  }
  fill_offsets(transposed, [&](int64_t, int64_t column) { return of_column[column]; }, offsets);
}

}  // namespace

template <class T, class S>
void convolution_spmm(const Convolution& c, const Runs& runs, const T* values, const T* bias, const S* x, S* y, int64_t batch, Pair size, int64_t threads) {
  if (!batch || !runs.rows) return;
  const Isa isa = current_isa();
  const Kernels<T, S>& k = kernels<T, S>(isa);
  const Multiplier<T>& multiplier = run_kernels<T, int32_t>(isa);
  const Cut cuts = cut(k, c, batch, size, false, threads);
  const Planes<T, S> source(k, c.in_channels, size, c.padding, c.stride, cuts.band + cuts.reach.height, cuts.pitch, cuts.slack, cuts.width);
  const Planes<T, S> target(k, c.out_channels, cuts.output, {0, 0}, {1, 1}, cuts.band, cuts.pitch, k.lanes / cuts.width, cuts.width);

  const size_t offsets_bytes = lines<int32_t>(runs.places()), source_bytes = lines<T>(source.elements()), target_bytes = lines<T>(target.elements());
  const Workspace scratch(offsets_bytes + (source_bytes + target_bytes) * threads);
  int32_t* offsets = scratch.as<int32_t>();
  forward_offsets(c, cuts, runs, source.plane(), offsets);
  std::vector<char> ready(threads, 0);

  parallel_for(cuts.chunks(), threads, [&](int64_t slot, int64_t chunk) {
    T* from = scratch.as<T>(offsets_bytes + (source_bytes + target_bytes) * slot);
    T* to = scratch.as<T>(offsets_bytes + (source_bytes + target_bytes) * slot + source_bytes);
    if (!ready[slot]) std::memset(from, 0, source_bytes);
    ready[slot] = 1;
    const int64_t sample = chunk / cuts.bands() * cuts.width, row = chunk % cuts.bands() * cuts.band;
    const int64_t samples = std::min(cuts.width, batch - sample), rows = std::min(cuts.band, cuts.rows - row);
    source.pack(row, samples, x + sample * c.in_channels * size.height * size.width, from);
    spmm_planes(runs, multiplier, k.lanes, offsets, values, bias, cuts.width, rows * cuts.pitch * cuts.width, from, to, target.stride());
    target.unpack(row, rows, samples, to, y + sample * c.out_channels * cuts.output.height * cuts.output.width);
  });
}

template <class T, class S>
void convolution_backward(const Convolution& c, const Runs* runs, const Runs* transposed, const T* values, const S* dy, const S* x, T* dvalues, S* dx, T* dbias,
                          int64_t batch, Pair size, int64_t threads) {
  const Isa isa = current_isa();
  const Kernels<T, S>& k = kernels<T, S>(isa);
  const Multiplier<T>& multiplier = run_kernels<T, int32_t>(isa);
  const Cut cuts = cut(k, c, batch, size, true, 8);
  const Planes<T, S> source(k, c.in_channels, size, c.padding, c.stride, cuts.band + cuts.reach.height, cuts.pitch, cuts.slack, cuts.width);
  const Planes<T, S> dtarget(k, c.out_channels, cuts.output, cuts.reach, {1, 1}, cuts.band + cuts.reach.height, cuts.pitch, cuts.slack, cuts.width);
  const Planes<T, S> dsource(k, c.in_channels, size, c.padding, c.stride, cuts.band, cuts.pitch, k.lanes / cuts.width, cuts.width);

  const int64_t slots = std::min(cuts.chunks(), most_slots);
  const size_t offsets_bytes = dvalues ? lines<int32_t>(runs->places()) : 0, sums_bytes = dvalues ? lines<T>(runs->nnz) : 0;
  const size_t bias_bytes = lines<T>(c.out_channels);
  const size_t t_offsets_bytes = dx ? lines<int32_t>(transposed->places()) : 0, gathered_bytes = dx ? lines<T>(transposed->nnz) : 0;
  const size_t source_bytes = dvalues ? lines<T>(source.elements()) : 0, dtarget_bytes = lines<T>(dtarget.elements());
  const size_t dsource_bytes = dx ? lines<T>(dsource.elements()) : 0, chunk_bytes = source_bytes + dtarget_bytes + dsource_bytes;
  const size_t partial_begin = offsets_bytes + t_offsets_bytes + gathered_bytes, shared_bytes = partial_begin + (sums_bytes + bias_bytes) * slots;
  const Workspace scratch(shared_bytes + chunk_bytes * threads);
  int32_t *offsets = scratch.as<int32_t>(), *t_offsets = scratch.as<int32_t>(offsets_bytes);
  T* gathered = scratch.as<T>(offsets_bytes + t_offsets_bytes);
  const auto partial = [&](int64_t slot) { return scratch.as<T>(partial_begin + (sums_bytes + bias_bytes) * slot); };  // in the order of the runs
  const auto partial_bias = [&](int64_t slot) { return partial(slot) + sums_bytes / sizeof(T); };
  if (dvalues) forward_offsets(c, cuts, *runs, source.plane(), offsets);
  if (dx) {
    backward_offsets(c, cuts, *transposed, dtarget.plane(), t_offsets);
    k.gather(values, transposed->at(), transposed->nnz, gathered);
  }
  const int64_t here = (cuts.reach.height * cuts.pitch + cuts.reach.width) * cuts.width;  // a dy's own position, behind the padding
  std::vector<char> ready(threads, 0);

  // Part `slot` of the sums takes every slots-th chunk, in order.
  parallel_for(slots, threads, [&](int64_t thread, int64_t slot) {
    T* packed_x = scratch.as<T>(shared_bytes + chunk_bytes * thread);
    T* packed_dy = packed_x + source_bytes / sizeof(T);
    T* packed_dx = packed_dy + dtarget_bytes / sizeof(T);
    if (!ready[thread]) std::memset(packed_x, 0, source_bytes + dtarget_bytes);
    ready[thread] = 1;
    for (int64_t chunk = slot; chunk < cuts.chunks(); chunk += slots) {
      const int64_t sample = chunk / cuts.bands() * cuts.width, row = chunk % cuts.bands() * cuts.band;
      const int64_t samples = std::min(cuts.width, batch - sample), rows = std::min(cuts.band, cuts.rows - row);
      const int64_t elements = rows * cuts.pitch * cuts.width;
      const bool first = chunk == slot;
      dtarget.pack(row, samples, dy + sample * c.out_channels * cuts.output.height * cuts.output.width, packed_dy);
      if (dvalues) {
        source.pack(row, samples, x + sample * c.in_channels * size.height * size.width, packed_x);
        for_blocks(*runs, multiplier, k.lanes, offsets, cuts.width, dtarget.stride(), elements,
                   [&](int64_t block, RunCursor<int32_t> cursor, const Steps<int32_t>& steps, int64_t at) {
                     T* sums = partial(slot) + runs->connections_begin(block, 0);
                     multiplier.correlate(cursor, runs->count(block, 0), steps, first && at == 0, packed_x + at, packed_dy + here + at, sums);
                   });
      }
      if (dbias) k.sum(0, c.out_channels, divide_up(elements, k.lanes), first, packed_dy + here, dtarget.stride(), partial_bias(slot));
      if (dx) {
        spmm_planes(*transposed, multiplier, k.lanes, t_offsets, gathered, static_cast<const T*>(nullptr), cuts.width, elements, packed_dy, packed_dx,
                    dsource.stride());
        dsource.unpack(row, rows, samples, packed_dx, dx + sample * c.in_channels * size.height * size.width);
      }
    }
  });

  // Into the first part: nothing else needs it any more.
  const auto add_up = [&](int64_t count, auto part) {
    for (int64_t slot = 1; slot < slots; ++slot) {
      T *total = part(0), *own = part(slot);
      for (int64_t i = 0; i < count; ++i) total[i] += own[i];
    }
    return part(0);
  };
  if (!slots) {
    if (dvalues) std::fill_n(dvalues, runs->nnz, T(0));
    if (dbias) std::fill_n(dbias, c.out_channels, T(0));
    return;
  }
  if (dvalues) {
    const T* sums = add_up(runs->nnz, partial);
    for (int64_t block = 0; block < runs->blocks(); ++block) runs->scatter(block, 0, 1, sums + runs->connections_begin(block, 0), dvalues);
  }
  if (dbias) std::copy_n(add_up(c.out_channels, partial_bias), c.out_channels, dbias);
}

void transpose_convolution(const Convolution& c, const int32_t* indptr, const int32_t* indices, int32_t* t_indptr, int32_t* t_indices,
                           int32_t* permutation) {
  const int64_t columns = c.channels_per_group() * c.taps();
  std::vector<int32_t> keys(columns * c.groups);
  for (int64_t i = 0; i < columns * c.groups; ++i) {
    const int64_t channel = i / c.taps(), h = i / c.kernel.width % c.kernel.height * c.dilation.height, w = i % c.kernel.width * c.dilation.width;
    keys[i] = static_cast<int32_t>(channel * c.phases() + h % c.stride.height * c.stride.width + w % c.stride.width);
  }
  transpose(c.out_channels, columns, indptr, indices, c.in_channels * c.phases(), keys.data(), std::max<int64_t>(1, c.out_channels / c.groups),
            c.taps(), t_indptr, t_indices, permutation);
}

#define INSTANTIATE(T, S)                                                                                                          \
  template void convolution_spmm<T, S>(const Convolution&, const Runs&, const T*, const T*, const S*, S*, int64_t, Pair, int64_t); \
  template void convolution_backward<T, S>(const Convolution&, const Runs*, const Runs*, const T*, const S*, const S*, T*, S*,     \
                                           T*, int64_t, Pair, int64_t);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, Bfloat16)
#undef INSTANTIATE

}  // namespace truesparse
