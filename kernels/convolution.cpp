#include "convolution.h"

#include <algorithm>

#include "kernels.h"
#include "planes.h"
#include "threads.h"
#include "workspace.h"

namespace truesparse {
namespace {

constexpr int64_t nearest_cache = 40 << 10;  // bytes of packed source a tile touches per block of channels
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

// Calls body(vectors, position) for every tile of `elements` packed elements.
template <class T, class S, class Body>
void for_tiles(const Kernels<T, S>& k, int64_t elements, Body&& body) {
  const int64_t vectors = divide_up(elements, k.lanes), tiles = divide_up(vectors, k.tile_vectors), each = divide_up(vectors, std::max<int64_t>(1, tiles));
  for (int64_t v = 0; v < vectors; v += each) body(std::min(each, vectors - v), v * k.lanes);
}

// Blocks of the layout (whole channels each) whose source under one tile fills the nearest cache.
template <class T, class S>
int64_t blocks_at_once(const Kernels<T, S>& k, const Convolution& c, const Cut& cut, const Layout& layout) {
  const int64_t channels = std::max<int64_t>(1, divide_up(layout.columns, layout.blocks) / c.taps());
  const int64_t touched = c.kernel.height * (k.tile_vectors * k.lanes + (c.kernel.width - 1) * cut.width) * static_cast<int64_t>(sizeof(T));
  return std::max<int64_t>(1, nearest_cache / (channels * touched));
}

template <class T, class S>
void spmm_planes(const Kernels<T, S>& k, const Layout& layout, int64_t together, const int32_t* offsets, const T* values, const T* bias, int64_t step,
                 int64_t elements, const T* source, T* target, int64_t target_stride) {
  for (int64_t block = 0; block < layout.blocks; block += together) {
    const Connections<T> c{0, layout.rows, layout.start(block), layout.start(block + together), offsets, values, step, layout.alike};
    for_tiles(k, elements, [&](int64_t vectors, int64_t at) { k.spmm(c, vectors, block == 0, bias, source + at, target + at, target_stride); });
  }
}

// Positions from a channel's first packed position to each connection's, for outputs at the same position.
void forward_offsets(const Convolution& c, const Cut& cut, const Layout& layout, int64_t plane, int32_t* offsets) {
  std::vector<int32_t> of_column(layout.columns);
  for (int64_t i = 0; i < layout.columns; ++i) {
    const int64_t h = i / c.kernel.width % c.kernel.height * c.dilation.height, w = i % c.kernel.width * c.dilation.width;
    const int64_t phase = h % c.stride.height * c.stride.width + w % c.stride.width;
    of_column[i] = static_cast<int32_t>((i / c.taps() * c.phases() + phase) * plane + h / c.stride.height * cut.pitch + w / c.stride.width);
  }
  const int64_t group = c.channels_per_group() * c.phases() * plane, rows_per_group = std::max<int64_t>(1, layout.rows / c.groups);
  for (int64_t r = 0; r < layout.rows; ++r)
    for (int32_t p = layout.indptr[r]; p < layout.indptr[r + 1]; ++p)
      offsets[p] = of_column[layout.indices[p]] + static_cast<int32_t>(r / rows_per_group * group);
}

// The same through the transposed layout: an input sees the outputs that lie before it.
void backward_offsets(const Convolution& c, const Cut& cut, const Layout& transposed, int64_t plane, int32_t* offsets) {
  std::vector<int32_t> of_tap(c.taps());
  for (int64_t i = 0; i < c.taps(); ++i) {
    const int64_t h = i / c.kernel.width * c.dilation.height / c.stride.height, w = i % c.kernel.width * c.dilation.width / c.stride.width;
    of_tap[i] = static_cast<int32_t>((cut.reach.height - h) * cut.pitch + cut.reach.width - w);
  }
  const int64_t nnz = transposed.nnz();
  for (int64_t p = 0; p < nnz; ++p)
    offsets[p] = static_cast<int32_t>(transposed.indices[p] / c.taps() * plane) + of_tap[transposed.indices[p] % c.taps()];
}

}  // namespace

template <class T, class S>
void convolution_spmm(const Convolution& c, const Layout& layout, const T* values, const T* bias, const S* x, S* y, int64_t batch, Pair size,
                      int64_t threads) {
  if (!batch || !layout.rows) return;
  const Kernels<T, S>& k = kernels<T, S>(current_isa());
  const Cut cuts = cut(k, c, batch, size, false, threads);
  const Planes<T, S> source(k, c.in_channels, size, c.padding, c.stride, cuts.band + cuts.reach.height, cuts.pitch, cuts.slack, cuts.width);
  const Planes<T, S> target(k, c.out_channels, cuts.output, {0, 0}, {1, 1}, cuts.band, cuts.pitch, k.lanes / cuts.width, cuts.width);

  const size_t offsets_bytes = lines<int32_t>(layout.nnz()), source_bytes = lines<T>(source.elements()), target_bytes = lines<T>(target.elements());
  const Workspace scratch(offsets_bytes + (source_bytes + target_bytes) * threads);
  int32_t* offsets = scratch.as<int32_t>();
  forward_offsets(c, cuts, layout, source.plane(), offsets);
  const int64_t together = blocks_at_once(k, c, cuts, layout);
  std::vector<char> ready(threads, 0);

  parallel_for(cuts.chunks(), threads, [&](int64_t slot, int64_t chunk) {
    T* from = scratch.as<T>(offsets_bytes + (source_bytes + target_bytes) * slot);
    T* to = scratch.as<T>(offsets_bytes + (source_bytes + target_bytes) * slot + source_bytes);
    if (!ready[slot]) std::memset(from, 0, source_bytes);
    ready[slot] = 1;
    const int64_t sample = chunk / cuts.bands() * cuts.width, row = chunk % cuts.bands() * cuts.band;
    const int64_t samples = std::min(cuts.width, batch - sample), rows = std::min(cuts.band, cuts.rows - row);
    source.pack(row, samples, x + sample * c.in_channels * size.height * size.width, from);
    spmm_planes(k, layout, together, offsets, values, bias, cuts.width, rows * cuts.pitch * cuts.width, from, to, target.stride());
    target.unpack(row, rows, samples, to, y + sample * c.out_channels * cuts.output.height * cuts.output.width);
  });
}

template <class T, class S>
void convolution_backward(const Convolution& c, const Layout& layout, const Layout* transposed, const T* values, const S* dy, const S* x,
                          T* dvalues, S* dx, T* dbias, int64_t batch, Pair size, int64_t threads) {
  const int64_t nnz = layout.nnz();
  const Kernels<T, S>& k = kernels<T, S>(current_isa());
  const Cut cuts = cut(k, c, batch, size, true, 8);
  const Planes<T, S> source(k, c.in_channels, size, c.padding, c.stride, cuts.band + cuts.reach.height, cuts.pitch, cuts.slack, cuts.width);
  const Planes<T, S> dtarget(k, c.out_channels, cuts.output, cuts.reach, {1, 1}, cuts.band + cuts.reach.height, cuts.pitch, cuts.slack, cuts.width);
  const Planes<T, S> dsource(k, c.in_channels, size, c.padding, c.stride, cuts.band, cuts.pitch, k.lanes / cuts.width, cuts.width);

  const int64_t slots = std::min(cuts.chunks(), most_slots);
  const size_t offsets_bytes = lines<int32_t>(nnz), values_bytes = lines<T>(nnz), bias_bytes = lines<T>(c.out_channels);
  const size_t source_bytes = dvalues ? lines<T>(source.elements()) : 0, dtarget_bytes = lines<T>(dtarget.elements());
  const size_t dsource_bytes = dx ? lines<T>(dsource.elements()) : 0, chunk_bytes = source_bytes + dtarget_bytes + dsource_bytes;
  const size_t shared_bytes = 2 * offsets_bytes + values_bytes + (values_bytes + bias_bytes) * slots;
  const Workspace scratch(shared_bytes + chunk_bytes * threads);
  int32_t *offsets = scratch.as<int32_t>(), *t_offsets = scratch.as<int32_t>(offsets_bytes);
  T* gathered = scratch.as<T>(2 * offsets_bytes);
  const auto partial = [&](int64_t slot) { return scratch.as<T>(2 * offsets_bytes + values_bytes + (values_bytes + bias_bytes) * slot); };
  const auto partial_bias = [&](int64_t slot) { return partial(slot) + values_bytes / sizeof(T); };
  if (dvalues) forward_offsets(c, cuts, layout, source.plane(), offsets);
  if (dx) {
    backward_offsets(c, cuts, *transposed, dtarget.plane(), t_offsets);
    gather(*transposed, values, gathered, threads);
  }
  const int64_t together = blocks_at_once(k, c, cuts, layout), t_together = dx ? blocks_at_once(k, c, cuts, *transposed) : 1;
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
        for (int64_t block = 0; block < layout.blocks; block += together) {
          const Connections<T> part{0, layout.rows, layout.start(block), layout.start(block + together), offsets, nullptr, cuts.width, layout.alike};
          for_tiles(k, elements, [&](int64_t vectors, int64_t at) {
            k.sddmm(part, vectors, first && at == 0, packed_x + at, packed_dy + here + at, dtarget.stride(), partial(slot));
          });
        }
      }
      if (dbias) k.sum(0, c.out_channels, divide_up(elements, k.lanes), first, packed_dy + here, dtarget.stride(), partial_bias(slot));
      if (dx) {
        spmm_planes(k, *transposed, t_together, t_offsets, gathered, static_cast<const T*>(nullptr), cuts.width, elements, packed_dy, packed_dx, dsource.stride());
        dsource.unpack(row, rows, samples, packed_dx, dx + sample * c.in_channels * size.height * size.width);
      }
    }
  });

  const auto add_up = [&](T* total, int64_t count, auto part) {
    std::fill(total, total + count, T(0));
    for (int64_t slot = 0; slot < slots; ++slot) {
      const T* own = part(slot);
      for (int64_t i = 0; i < count; ++i) total[i] += own[i];
    }
  };
  if (dvalues) add_up(dvalues, nnz, partial);
  if (dbias) add_up(dbias, c.out_channels, partial_bias);
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

#define INSTANTIATE(T, S)                                                                                                            \
  template void convolution_spmm<T, S>(const Convolution&, const Layout&, const T*, const T*, const S*, S*, int64_t, Pair, int64_t); \
  template void convolution_backward<T, S>(const Convolution&, const Layout&, const Layout*, const T*, const S*, const S*, T*, S*,   \
                                           T*, int64_t, Pair, int64_t);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, Bfloat16)
#undef INSTANTIATE

}  // namespace truesparse
