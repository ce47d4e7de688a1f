#include "runs.h"

#include <algorithm>

#include "layout.h"
#include "threads.h"

namespace truesparse {
namespace {

// Rows of the same columns stay together.
std::vector<int64_t> parts_of(int64_t rows, const int32_t* indptr, int64_t alike, int64_t wanted) {
  std::vector<int64_t> begins = partition(rows, indptr, wanted, alike);
  if (begins.size() == 1) begins.push_back(rows);
  return begins;
}

int64_t width_of(int64_t rows, const int32_t* indptr, int64_t wanted) {
  for (int64_t row = 0; wanted > longest_run && row < rows; ++row)
    if (indptr[row + 1] - indptr[row] > longest_run) return longest_run;
  return wanted;
}

// Of the first of the rows that are alike.
struct Run {
  int32_t row, begin, length;
};

// Longest first, and those of one length in the order in which they came. `found` is left empty.
void sort_by_length(std::vector<Run>& found, std::vector<Run>& sorted, std::vector<int64_t>& ends) {
  int64_t longest = 0;
  for (const Run& run : found) longest = std::max<int64_t>(longest, run.length);
  ends.assign(static_cast<size_t>(longest) + 1, 0);
  for (const Run& run : found) ++ends[run.length];
  for (int64_t length = longest, before = 0; length >= 0; --length) before = ends[length] += before;
  sorted.resize(found.size());
  for (size_t i = found.size(); i-- > 0;) sorted[--ends[found[i].length]] = found[i];
  found.clear();
}

}  // namespace

Runs::Runs(int64_t rows, int64_t columns, const int32_t* indptr, const int32_t* indices, const int32_t* permutation, int64_t width, int64_t parts,
           int64_t rows_per_group, int64_t threads)
    : rows(rows), columns(columns), nnz(indptr[rows]), width(width_of(rows, indptr, width)), alike(rows_alike(rows, indptr, indices, rows_per_group)),
      part_begins_(parts_of(rows, indptr, alike, parts)) {
  const int64_t pieces = blocks() * this->parts();
  std::vector<int32_t> starts(static_cast<size_t>((blocks() - 1) * rows));
  block_starts(rows, indptr, indices, this->width, blocks(), starts.data(), threads);
  const auto begin_of = [&](int64_t block, int64_t row) {
    return !block ? indptr[row] : block == blocks() ? indptr[row + 1] : starts[(block - 1) * rows + row];
  };
  const auto for_bands = [&](int64_t piece, auto&& body) {
    const int64_t block = piece / this->parts(), part = piece % this->parts();
    for (int64_t row = part_begin(part); row < part_begin(part + 1); row += alike) body(block, row, begin_of(block, row), begin_of(block + 1, row));
  };

  pieces_.assign(static_cast<size_t>(pieces) + 1, {0, 0});
  parallel_for(pieces, threads, [&](int64_t, int64_t item) {
    for_bands(item, [&](int64_t block, int64_t, int64_t begin, int64_t end) {
      pieces_[item + 1].run += !block || begin < end;
      pieces_[item + 1].place += end - begin;
    });
  });
  for (int64_t item = 0; item < pieces; ++item) {
    most_connections_ = std::max(most_connections_, pieces_[item + 1].place * alike);
    pieces_[item + 1].run += pieces_[item].run;
    pieces_[item + 1].place += pieces_[item].place;
  }

  const auto runs = static_cast<size_t>(pieces_.back().run);
  row_.reset(new int32_t[runs]);
  length_.reset(new uint16_t[runs]);
  start_.reset(new int32_t[runs * static_cast<size_t>(alike)]);
  if (wide()) wide_place_.reset(new int32_t[static_cast<size_t>(places())]);
  else place_.reset(new uint16_t[static_cast<size_t>(places())]);
  if (permutation) at_.reset(new int32_t[static_cast<size_t>(nnz)]);
  std::vector<std::vector<Run>> found(static_cast<size_t>(threads)), sorted(static_cast<size_t>(threads));
  std::vector<std::vector<int64_t>> ends(static_cast<size_t>(threads));
  parallel_for(pieces, threads, [&](int64_t slot, int64_t item) {
    for_bands(item, [&](int64_t block, int64_t row, int64_t begin, int64_t end) {
      if (!block || begin < end) found[slot].push_back({static_cast<int32_t>(row), static_cast<int32_t>(begin), static_cast<int32_t>(end - begin)});
    });
    sort_by_length(found[slot], sorted[slot], ends[slot]);
    const auto first_column = static_cast<int32_t>(item / this->parts() * this->width);
    int64_t at_run = pieces_[item].run, at_place = pieces_[item].place, connection = at_place * alike;
    for (const Run& run : sorted[slot]) {
      row_[at_run] = run.row;
      length_[at_run] = static_cast<uint16_t>(run.length);
      if (wide())
        for (int64_t i = 0; i < run.length; ++i) wide_place_[at_place + i] = indices[run.begin + i] - first_column;
      else
        for (int64_t i = 0; i < run.length; ++i) place_[at_place + i] = static_cast<uint16_t>(indices[run.begin + i] - first_column);
      for (int64_t r = 0; r < alike; ++r) {
        const int32_t begin = run.begin + indptr[run.row + r] - indptr[run.row];
        start_[at_run * alike + r] = permutation ? static_cast<int32_t>(connection) : begin;
        if (permutation) std::copy_n(permutation + begin, run.length, at_.get() + connection);
        connection += run.length;
      }
      at_place += run.length;
      ++at_run;
    }
  });
}

int64_t Runs::most_rows() const {
  int64_t most = 0;
  for (int64_t part = 0; part < parts(); ++part) most = std::max(most, part_begin(part + 1) - part_begin(part));
  return most;
}

size_t Runs::bytes() const {
  const auto runs = static_cast<size_t>(pieces_.back().run);
  return pieces_.size() * sizeof(Piece) + runs * (sizeof *row_.get() + sizeof *length_.get() + static_cast<size_t>(alike) * sizeof *start_.get()) +
         static_cast<size_t>(places()) * (wide() ? sizeof *wide_place_.get() : sizeof *place_.get()) + (at_ ? static_cast<size_t>(nnz) * sizeof *at_.get() : 0);
}

}  // namespace truesparse
