#include "pairs.h"

#include <algorithm>
#include <numeric>

#include "isa.h"
#include "kernels.h"
#include "pair_kernels.h"
#include "threads.h"
#include "workspace.h"

namespace truesparse {
namespace {

constexpr size_t partners_tried = 128;    // of the rows that have about as many connections
constexpr double step_cost = 0.23, load_cost = 0.085;  // nanoseconds of a vector: of a multiply-add, and what of it is the load of its source
constexpr int64_t prefetch_parts = 8;     // the next block is asked for in so many steps

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The connections of one row in one block; `columns` has a bit for each column of the block.
struct Run {
  int32_t row, begin, end;
  std::vector<uint64_t> columns;

  int32_t size() const { return end - begin; }
};

struct Pair {
  const Run* first;
  const Run* second;  // null: the first is alone
  int32_t shared;     // columns that both have
};

int32_t columns_in_common(const Run& a, const Run& b) {
  int32_t common = 0;
  for (size_t word = 0; word < a.columns.size(); ++word) common += __builtin_popcountll(a.columns[word] & b.columns[word]);
  return common;
}

// Rows of about one length, longest first, each with the partner that saves most. Pairs that share most come first, then longer ones.
std::vector<Pair> paired(std::vector<Run>& runs) {
  std::stable_sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.size() > b.size(); });
  const size_t count = runs.size();
  std::vector<size_t> next(count + 1);  // the next run without a partner
  std::iota(next.begin(), next.end(), size_t{1});
  std::vector<bool> taken(count);
  std::vector<Pair> pairs;
  for (size_t i = 0; i < count; ++i) {
    if (taken[i]) continue;
    Pair best{&runs[i], nullptr, 0};
    double most = -1e300;
    size_t chosen = count, before_chosen = i;
    for (size_t before = i, j = next[i], tried = 0; j < count && tried < partners_tried; before = j, j = next[j], ++tried) {
      const double padding = step_cost * (runs[i].size() - runs[j].size());
      if (load_cost * runs[j].size() - padding <= most) break;  // shorter ones cannot share more
      const int32_t shared = columns_in_common(runs[i], runs[j]);
      const double saved = load_cost * shared - padding;
      if (saved <= most) continue;
      most = saved;
      best.second = &runs[j];
      best.shared = shared;
      chosen = j;
      before_chosen = before;
    }
    if (chosen < count) {
      taken[chosen] = true;
      next[before_chosen] = next[chosen];
    }
    pairs.push_back(best);
  }
  std::stable_sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) {
    return a.shared != b.shared ? a.shared > b.shared : a.first->size() > b.first->size();
  });
  return pairs;
}

// The columns and values of each step of one pair.
struct Steps {
  std::vector<std::pair<int32_t, std::pair<float, float>>> shared;
  std::vector<std::pair<int32_t, float>> own[2];
};

Steps steps_of(const int32_t* indices, const float* values, const Pair& pair, size_t shared) {
  Steps steps;
  int32_t p = pair.first->begin, q = pair.second ? pair.second->begin : 0;
  const int32_t p_end = pair.first->end, q_end = pair.second ? pair.second->end : 0;
  while (p < p_end || q < q_end) {
    const bool left = q == q_end || (p < p_end && indices[p] <= indices[q]);
    const bool right = p == p_end || (q < q_end && indices[q] <= indices[p]);
    if (left && right && steps.shared.size() < shared) {
      steps.shared.push_back({indices[p], {values[p], values[q]}});
    } else {
      if (left) steps.own[0].push_back({indices[p], values[p]});
      if (right) steps.own[1].push_back({indices[q], values[q]});
    }
    p += left;
    q += right;
  }
  return steps;
}

void append_group(const PairShape& shape, int64_t block, int64_t part, const int32_t* indices, const float* values, const Pair* pairs, int64_t count,
                  PairArrays& to) {
  const auto first_row = static_cast<int32_t>(shape.part_begin(part)), nobody = static_cast<int32_t>(shape.part_begin(part + 1)) - first_row;
  const auto first_column = static_cast<int32_t>(block * shape.width);
  const auto place = [first_column](int64_t column) { return static_cast<uint16_t>((column - first_column) * place_unit); };
  const uint16_t zeros = place(first_column + shape.width);
  size_t shared = count == shape.abreast ? SIZE_MAX : 0, own = 0;
  for (int64_t i = 0; i < count; ++i) shared = std::min(shared, static_cast<size_t>(pairs[i].shared));
  std::vector<Steps> all(shape.abreast);
  for (int64_t i = 0; i < shape.abreast; ++i) {
    if (i < count) all[i] = steps_of(indices, values, pairs[i], shared);
    to.members.push_back(i < count ? pairs[i].first->row - first_row : nobody);
    to.members.push_back(i < count && pairs[i].second ? pairs[i].second->row - first_row : nobody);
    own = std::max({own, all[i].own[0].size(), all[i].own[1].size()});
  }
  to.steps.push_back(static_cast<uint16_t>(shared));
  to.steps.push_back(static_cast<uint16_t>(own));
  for (size_t step = 0; step < shared; ++step)
    for (const Steps& pair : all) {
      to.places.push_back(place(pair.shared[step].first));
      to.values.push_back(pair.shared[step].second.first);
      to.values.push_back(pair.shared[step].second.second);
    }
  for (size_t step = 0; step < own; ++step)
    for (const Steps& pair : all)
      for (const auto& row : pair.own) {
        to.places.push_back(step < row.size() ? place(row[step].first) : zeros);
        to.values.push_back(step < row.size() ? row[step].second : 0.0f);
      }
}

// The instruction set in force; half as wide vectors where a batch does not fill more.
Isa isa_for(int64_t batch) {
  const Isa isa = current_isa();
  return isa == Isa::avx512 && batch <= kernels<float>(Isa::avx2).lanes && isa_supported(Isa::avx2) ? Isa::avx2 : isa;
}

// Asks for `part` of `parts` of the columns `begin` to `end` of some samples, while the processor is busy multiplying.
void prefetch(const float* x, int64_t samples, int64_t stride, int64_t begin, int64_t end, int64_t part, int64_t parts) {
  constexpr int64_t line = 64 / sizeof(float);
  for (int64_t sample = samples * part / parts; sample < samples * (part + 1) / parts; ++sample)
    for (int64_t column = begin; column < end; column += line) __builtin_prefetch(x + sample * stride + column, 0, 2);
}

}  // namespace

PairArrays lay_out_pairs(const PairShape& shape, const int32_t* indptr, const int32_t* indices, const float* values) {
  PairArrays arrays;
  const auto mark = [&arrays] {
    arrays.starts.push_back(static_cast<int64_t>(arrays.steps.size()) / 2);
    arrays.starts.push_back(static_cast<int64_t>(arrays.places.size()));
    arrays.starts.push_back(static_cast<int64_t>(arrays.values.size()));
  };
  for (int64_t part = 0; part < shape.parts; ++part) {
    std::vector<int32_t> reached(indptr + shape.part_begin(part), indptr + shape.part_begin(part + 1));
    for (int64_t block = 0; block < shape.blocks(); ++block) {
      mark();
      std::vector<Run> runs;
      for (int64_t row = shape.part_begin(part); row < shape.part_begin(part + 1); ++row) {
        int32_t& end = reached[row - shape.part_begin(part)];
        const int32_t begin = end;
        while (end < indptr[row + 1] && indices[end] < (block + 1) * shape.width) ++end;
        if (begin == end) continue;
        runs.push_back({static_cast<int32_t>(row), begin, end, std::vector<uint64_t>((shape.width + 63) / 64)});
        for (int32_t p = begin; p < end; ++p) {
          const int64_t column = indices[p] - block * shape.width;
          runs.back().columns[column / 64] |= uint64_t{1} << (column % 64);
        }
      }
      const std::vector<Pair> pairs = paired(runs);
      const auto count = static_cast<int64_t>(pairs.size());
      for (int64_t i = 0; i < count; i += shape.abreast)
        append_group(shape, block, part, indices, values, pairs.data() + i, std::min(shape.abreast, count - i), arrays);
    }
  }
  mark();
  return arrays;
}

void pairs_spmm(const Pairs& pairs, const float* bias, bool relu, const float* x, float* y, int64_t batch, int64_t threads) {
  const PairShape& shape = pairs.shape;
  if (!batch || !shape.rows) return;
  const Isa isa = isa_for(batch);
  const PairKernels& k = pair_kernels(isa);
  const Kernels<float>& packing = kernels<float>(isa);
  // As few tiles as possible, of equal size, and as many for each thread.
  const int64_t all = divide_up(batch, packing.lanes);
  int64_t tiles = divide_up(all, k.most_vectors(shape.abreast));
  if (shape.parts == 1 && all >= threads) tiles = divide_up(tiles, threads) * threads;
  const int64_t vectors = divide_up(all, tiles), tile_samples = vectors * packing.lanes;
  tiles = divide_up(batch, tile_samples);

  const int64_t blocks = shape.blocks(), most_rows = divide_up(shape.rows, shape.parts);
  const size_t source_bytes = lines<float>((shape.width + 1) * tile_samples), target_bytes = lines<float>((most_rows + 1) * tile_samples);
  const Workspace scratch((source_bytes + target_bytes) * threads);
  parallel_for(tiles * shape.parts, threads, [&](int64_t slot, int64_t item) {
    const int64_t part = item % shape.parts, sample = item / shape.parts * tile_samples, samples = std::min(tile_samples, batch - sample);
    const int64_t own_vectors = divide_up(samples, packing.lanes), tile = own_vectors * packing.lanes;
    const int64_t row = shape.part_begin(part), rows = shape.part_begin(part + 1) - row;
    const float* from = x + sample * shape.columns;
    float* source = scratch.as<float>((source_bytes + target_bytes) * slot);
    float* target = scratch.as<float>((source_bytes + target_bytes) * slot + source_bytes);
    std::fill_n(source + shape.width * tile, tile, 0.0f);
    k.begin(rows, own_vectors, bias ? bias + row : nullptr, target);
    std::fill_n(target + rows * tile, tile, 0.0f);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t begin = block * shape.width, end = std::min(shape.columns, begin + shape.width), next = std::min(shape.columns, end + shape.width);
      packing.pack({samples, tile, shape.columns, end - begin, nullptr}, from + begin, source);
      const int64_t* start = pairs.starts + 3 * (part * blocks + block);
      const int64_t groups = start[3] - start[0];
      PairGroups own{shape.abreast, pairs.steps + 2 * start[0], pairs.members + 2 * shape.abreast * start[0], pairs.places + start[1], pairs.values + start[2]};
      for (int64_t i = 0; i < prefetch_parts; ++i) {
        prefetch(from, samples, shape.columns, end, next, i, prefetch_parts);
        k.add(own, groups * (i + 1) / prefetch_parts - groups * i / prefetch_parts, own_vectors, source, target);
      }
    }
    if (relu) k.rectify(rows, own_vectors, target);
    packing.unpack({samples, tile, shape.rows, rows, nullptr}, target, y + sample * shape.rows + row);
  });
}

}  // namespace truesparse
