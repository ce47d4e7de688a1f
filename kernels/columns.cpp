#include "columns.h"

#include <algorithm>
#include <cstring>

#include "column_kernels.h"
#include "isa.h"
#include "threads.h"
#include "workspace.h"

namespace truesparse {
namespace {

constexpr int64_t samples_at_once = 16;  // whose inputs are listed before they are multiplied

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls multiply(item, inputs of a sample, y of that sample) for every item and sample.
template <class Multiply>
void for_nonzero(int64_t rows, int64_t columns, int64_t items, const float* x, float* y, int64_t batch, int64_t threads, Multiply&& multiply) {
  const int64_t room = std::min(batch, samples_at_once) * columns;
  const Workspace scratch(lines<int32_t>(room) + lines<float>(room));
  auto* places = scratch.as<int32_t>();
  auto* values = scratch.as<float>(lines<int32_t>(room));
  for (int64_t first = 0; first < batch; first += samples_at_once) {
    const int64_t samples = std::min(batch - first, samples_at_once);
    NonzeroInputs inputs[samples_at_once];
    for (int64_t sample = 0; sample < samples; ++sample) {
      const float* from = x + (first + sample) * columns;
      int32_t* own = places + sample * columns;
      float* kept = values + sample * columns;
      int64_t count = 0;
      for (int64_t column = 0; column < columns; ++column) {  // written always, kept if it is not zero: there is no branch to guess
        own[count] = static_cast<int32_t>(column);
        kept[count] = from[column];
        count += from[column] != 0;
      }
      inputs[sample] = {own, kept, count};
    }
    parallel_for(items, threads, [&](int64_t, int64_t item) {
      for (int64_t sample = 0; sample < samples; ++sample) multiply(item, inputs[sample], y + (first + sample) * rows);
    });
  }
}

float number(float value) { return value; }
float number(int8_t value) { return value; }
float number(Bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

}  // namespace

template <class V>
void columns_spmv(const Columns<V>& w, const float* bias, bool relu, const float* x, float* y, int64_t batch, int64_t threads) {
  const auto kernel = column_kernel<V>(current_isa());
  const int64_t wanted = threads > 1 ? divide_up(divide_up(w.rows, 2 * threads), column_lanes) * column_lanes : rows_at_once;
  const int64_t width = std::min(std::max(wanted, column_lanes), rows_at_once);
  for_nonzero(w.rows, w.columns, divide_up(w.rows, width), x, y, batch, threads, [&](int64_t item, const NonzeroInputs& inputs, float* own) {
    kernel(w, item * width, std::min((item + 1) * width, w.rows), inputs, bias, relu, own);
  });
}

template <class V>
void columns_spmv(const ColumnLists<V>& w, const float* bias, bool relu, const float* x, float* y, int64_t batch, int64_t threads) {
  const auto kernel = column_list_kernel<V>(current_isa());
  for_nonzero(w.rows, w.columns, w.parts(), x, y, batch, threads,
              [&](int64_t part, const NonzeroInputs& inputs, float* own) { kernel(w, part, inputs, bias, relu, own); });
}

template <class V>
void unpack_columns(const ColumnLists<V>& w, float* dense, int64_t threads) {
  parallel_for(w.parts(), threads, [&](int64_t, int64_t part) {
    for (int64_t column = 0; column < w.columns; ++column)
      for (int64_t p = w.starts[part * w.columns + column]; p < w.starts[part * w.columns + column + 1]; ++p) {
        const int64_t row = part * w.width + w.places[p];
        dense[column * w.rows + row] = number(w.values[p]) * (w.scales ? w.scales[row] : 1.0f);
      }
  });
}

template void columns_spmv<float>(const Columns<float>&, const float*, bool, const float*, float*, int64_t, int64_t);
template void columns_spmv<Bfloat16>(const Columns<Bfloat16>&, const float*, bool, const float*, float*, int64_t, int64_t);
template void columns_spmv<int8_t>(const Columns<int8_t>&, const float*, bool, const float*, float*, int64_t, int64_t);
template void columns_spmv<float>(const ColumnLists<float>&, const float*, bool, const float*, float*, int64_t, int64_t);
template void columns_spmv<Bfloat16>(const ColumnLists<Bfloat16>&, const float*, bool, const float*, float*, int64_t, int64_t);
template void columns_spmv<int8_t>(const ColumnLists<int8_t>&, const float*, bool, const float*, float*, int64_t, int64_t);
template void unpack_columns<float>(const ColumnLists<float>&, float*, int64_t);
template void unpack_columns<Bfloat16>(const ColumnLists<Bfloat16>&, float*, int64_t);
template void unpack_columns<int8_t>(const ColumnLists<int8_t>&, float*, int64_t);

}  // namespace truesparse
