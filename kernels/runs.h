// How is a sparse matrix laid out for batches, when its weights change at every step? In blocks of columns that fill the nearest cache once
// packed. What a row has in a block is a run. Runs lie by their length, longest first, so that the processor foresees the ends of all loops,
// and the columns of their connections lie in the order of use. Values stay where they are: a run says where its own begin. In the first block
// every row has a run, if only an empty one: there its sum begins.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace truesparse {

constexpr int64_t longest_run = 65535;       // connections: lengths have 16 bits
constexpr int64_t widest_run_block = 65536;  // columns that places of 16 bits can tell apart
constexpr int64_t part_of_run = 256;         // connections: see RunKernels::correlate

// Some runs, the next one first. Rows row to row + alike - 1 have the same columns. A place is a column of the block, or what stands for it.
template <class Place>
struct RunCursor {
  const int32_t* row;
  const uint16_t* length;
  const int32_t* start;  // [alike] of a run: where the values of each row begin
  const Place* place;
};

class Runs {
 public:
  // A transposed matrix says by `permutation` where in the user's values each connection is; its values are gathered into the order of the
  // runs. Otherwise it is null. `width` columns are a block, longest_run at most where a row has more connections than that. Places have 32
  // bits if there are more than widest_run_block. Rows are cut into `parts` of about equal work, at most: what threads share out, and whose sums
  // stay near. Rows of different groups of `rows_per_group` read different sources for one column.
  Runs(int64_t rows, int64_t columns, const int32_t* indptr, const int32_t* indices, const int32_t* permutation, int64_t width, int64_t parts,
       int64_t rows_per_group, int64_t threads);

  const int64_t rows, columns, nnz, width;
  const int64_t alike;  // 4, 2 or 1: see rows_alike

  bool wide() const { return width > widest_run_block; }  // whether places have 32 bits, not 16
  int64_t parts() const { return static_cast<int64_t>(part_begins_.size()) - 1; }
  int64_t blocks() const { return columns ? (columns + width - 1) / width : 1; }
  int64_t part_begin(int64_t part) const { return part_begins_[part]; }
  int64_t most_rows() const;  // of a part
  // A piece is what the rows of one part have in one block.
  int64_t count(int64_t block, int64_t part) const { return piece(block, part + 1).run - piece(block, part).run; }
  // With places of as many bits as there are.
  template <class Place>
  RunCursor<Place> cursor(int64_t block, int64_t part) const {
    const Piece& begin = piece(block, part);
    const Place* const places = static_cast<const Place*>(wide() == (sizeof(Place) == 4) ? place_begin() : nullptr);
    return {row_.get() + begin.run, length_.get() + begin.run, start_.get() + begin.run * alike, places ? places + begin.place : nullptr};
  }
  int64_t places_begin(int64_t block, int64_t part) const { return piece(block, part).place; }
  int64_t places() const { return pieces_.back().place; }
  int64_t connections_begin(int64_t block, int64_t part) const { return places_begin(block, part) * alike; }
  int64_t connections(int64_t block, int64_t part) const { return connections_begin(block, part + 1) - connections_begin(block, part); }
  int64_t most_connections() const { return most_connections_; }  // of a piece
  const int32_t* at() const { return at_.get(); }                 // [nnz] in the order of the runs, where in the user's values; null: starts say it
  size_t bytes() const;

  // From the order in which the kernels make the sums of some parts of a block to where the values of these connections are.
  template <class T>
  void scatter(int64_t block, int64_t part, int64_t part_end, const T* sums, T* dvalues) const {
    RunCursor<uint16_t> own = cursor<uint16_t>(block, part);
    for (int64_t run = piece(block, part_end).run - piece(block, part).run; run > 0; --run, ++own.length, own.start += alike)
      for (int64_t done = 0; done < *own.length; done += part_of_run) {
        const int64_t count = std::min(*own.length - done, part_of_run);
        for (int64_t r = 0; r < alike; ++r, sums += count) std::copy_n(sums, count, dvalues + own.start[r] + done);
      }
  }

 private:
  struct Piece {
    int64_t run, place;
  };
  const void* place_begin() const { return wide() ? static_cast<const void*>(wide_place_.get()) : place_.get(); }
  // In this order: parts of a block, blocks.
  const Piece& piece(int64_t block, int64_t part) const { return pieces_[block * parts() + part]; }

  std::vector<int64_t> part_begins_;
  std::vector<Piece> pieces_;
  int64_t most_connections_ = 0;
  std::unique_ptr<int32_t[]> row_, start_, at_, wide_place_;
  std::unique_ptr<uint16_t[]> length_, place_;
};

}  // namespace truesparse
