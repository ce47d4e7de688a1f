#include "windows.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "isa.h"
#include "threads.h"
#include "window_kernels.h"
#include "workspace.h"

namespace truesparse {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The connections of one row that are still to come, in order.
struct Ahead {
  int32_t next, end;
};

// Calls show(first column) for each window over a block, and take(lane, step, row of the lane, connection) for what is taken there.
template <class Show, class Take>
void schedule(int64_t columns, const int32_t* indptr, const int32_t* indices, const int32_t* rows, int64_t bits, int64_t shown, Show&& show,
              Take&& take) {
  const int64_t width = window_columns(bits), share = rows_of_lane(bits), steps = window_steps / shown;
  std::vector<Ahead> ahead(share * window_lanes, {0, 0});
  for (size_t i = 0; i < ahead.size(); ++i)
    if (rows[i] >= 0) ahead[i] = {indptr[rows[i]], indptr[rows[i] + 1]};
  for (;;) {
    int64_t first = columns;
    for (const Ahead& one : ahead)
      if (one.next < one.end) first = std::min<int64_t>(first, indices[one.next]);
    if (first == columns) return;
    first = std::max<int64_t>(0, std::min(first, columns - width));  // all that it shows is there, if anything can be
    show(first);
    for (int64_t lane = 0; lane < window_lanes; ++lane)
      for (int64_t step = 0; step < steps; ++step) {
        int64_t nearest = -1, column = first + width;
        for (int64_t row = 0; row < share; ++row)
          if (const Ahead& one = ahead[row * window_lanes + lane]; one.next < one.end && indices[one.next] < column) {
            nearest = row;
            column = indices[one.next];
          }
        if (nearest < 0) break;
        take(lane, step, nearest, ahead[nearest * window_lanes + lane].next++);
      }
  }
}

}  // namespace

void count_stops(int64_t rows, int64_t columns, const int32_t* indptr, const int32_t* indices, const int32_t* order, int64_t bits, int64_t shown,
                 int32_t* starts) {
  const int64_t own = window_lanes * rows_of_lane(bits), blocks = divide_up(rows, own);
  starts[0] = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    int64_t windows = 0;
    schedule(columns, indptr, indices, order + block * own, bits, shown, [&](int64_t) { ++windows; }, [](int64_t, int64_t, int64_t, int32_t) {});
    starts[block + 1] = starts[block] + static_cast<int32_t>(divide_up(windows, shown));
  }
}

void fill_windows(int64_t rows, int64_t columns, const int32_t* indptr, const int32_t* indices, const float* values, const int32_t* order,
                  int64_t bits, int64_t shown, int32_t* first, uint32_t* places, float* own) {
  const int64_t of_block = window_lanes * rows_of_lane(bits), words = words_of_places(bits), room = 32 * words / window_steps;
  int64_t windows = 0;  // so far
  const auto show = [&](int64_t column) { first[windows++] = static_cast<int32_t>(column); };
  const auto take = [&](int64_t lane, int64_t of_window, int64_t row, int32_t p) {
    const int64_t window = windows - 1, stop = window / shown, step = window % shown * (window_steps / shown) + of_window;
    own[(stop * window_steps + step) * window_lanes + lane] = values[p];
    const uint32_t place = static_cast<uint32_t>(indices[p] - first[window]) | static_cast<uint32_t>(row << (bits - 1));
    places[(stop * words + step * room / 32) * window_lanes + lane] |= place << (step * room % 32);
  };
  for (int64_t block = 0; block < divide_up(rows, of_block); ++block) {
    schedule(columns, indptr, indices, order + block * of_block, bits, shown, show, take);
    windows = divide_up(windows, shown) * shown;
  }
}

template <class V>
void unpack_windows(const Windows<V>& w, float* dense, int64_t threads) {
  const int64_t words = words_of_places(w.bits), room = 32 * words / window_steps, steps = window_steps / w.shown, own = w.rows_of_block();
  const uint32_t seen = static_cast<uint32_t>(window_columns(w.bits)) - 1, all = static_cast<uint32_t>((int64_t{1} << w.bits) - 1);
  const auto number = [](V value) {
    if constexpr (std::is_same_v<V, Bfloat16>) {
      const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
      float wide;
      std::memcpy(&wide, &bits, sizeof wide);
      return wide;
    } else {
      return static_cast<float>(value);
    }
  };
  parallel_for(w.blocks(), threads, [&](int64_t, int64_t block) {
    float* rows[2 * window_lanes];
    float scales[2 * window_lanes];
    for (int64_t lane = 0; lane < own; ++lane) {
      rows[lane] = dense + std::max(w.order[block * own + lane], 0) * w.columns;  // a lane without a row has no connections
      scales[lane] = w.scales ? w.scales[block * own + lane] : 1.0f;
    }
    for (int64_t stop = w.starts[block]; stop < w.starts[block + 1]; ++stop)
      for (int64_t step = 0; step < window_steps; ++step) {
        const int64_t first = w.first[stop * w.shown + step / steps], shift = step * room % 32;
        const uint32_t* places = w.places + (stop * words + step * room / 32) * window_lanes;
        const V* values = w.values + (stop * window_steps + step) * window_lanes;
        for (int64_t lane = 0; lane < window_lanes; ++lane) {
          const float value = number(values[lane]);
          if (value == 0) continue;  // nothing to do at this step
          const uint32_t place = places[lane] >> shift & all;
          const int64_t to = (place > seen) * window_lanes + lane;
          rows[to][first + (place & seen)] = value * scales[to];
        }
      }
  });
}

template <class V>
void windows_spmv(const Windows<V>& windows, const float* bias, bool relu, const float* x, float* y, int64_t batch, int64_t threads) {
  const auto kernel = window_kernel<V>(current_isa());
  const int64_t blocks = windows.blocks(), parts = threads > 1 ? std::min(blocks, 2 * threads) : 1;
  // Parts with as many stops each.
  const auto begin = [&](int64_t part) {
    const int64_t stops = static_cast<int64_t>(windows.starts[blocks]) * part / parts;
    return part == parts ? blocks : std::lower_bound(windows.starts, windows.starts + blocks, stops) - windows.starts;
  };
  const auto run = [&](const float* source, int64_t stride) {
    parallel_for(parts, threads, [&](int64_t, int64_t part) {
      kernel(windows, begin(part), begin(part + 1), bias, relu, source, stride, y, batch);
    });
  };
  const int64_t width = window_columns(windows.bits);
  if (windows.bits == 16 || windows.columns >= width) return run(x, windows.columns);
  // The window looks beyond the last column.
  const Workspace scratch(batch * width * sizeof(float));
  auto* padded = scratch.as<float>();
  std::memset(padded, 0, batch * width * sizeof(float));
  for (int64_t sample = 0; sample < batch; ++sample)
    std::copy_n(x + sample * windows.columns, windows.columns, padded + sample * width);
  run(padded, width);
}

template void unpack_windows<float>(const Windows<float>&, float*, int64_t);
template void unpack_windows<Bfloat16>(const Windows<Bfloat16>&, float*, int64_t);
template void unpack_windows<int8_t>(const Windows<int8_t>&, float*, int64_t);
template void windows_spmv<float>(const Windows<float>&, const float*, bool, const float*, float*, int64_t, int64_t);
template void windows_spmv<Bfloat16>(const Windows<Bfloat16>&, const float*, bool, const float*, float*, int64_t, int64_t);
template void windows_spmv<int8_t>(const Windows<int8_t>&, const float*, bool, const float*, float*, int64_t, int64_t);

}  // namespace truesparse
