// Which empty positions have the largest gradients? A running selection over slabs of rows, never the whole matrix.
//
// The order is total, so the answer depends neither on the cut into slabs, nor on threads, nor on chance: larger |gradient|
// first, then the smaller linear position. NaN comes after every number. Every empty position is eligible, an exact zero too.
#pragma once

#include <cstdint>
#include <memory>

namespace truesparse {

class TopK {
 public:
  explicit TopK(int64_t k);

  // gradients [rows, columns], rows `row_start` on of the whole; indptr and indices are the whole topology's.
  template <class T>
  void push(const T* gradients, int64_t row_start, int64_t rows, int64_t columns, const int32_t* indptr, const int32_t* indices,
            int64_t threads);

  // Writes linear positions, in any order, and returns how many: min(k, number of empty positions seen).
  int64_t result(int64_t* keys);

 private:
  struct Candidate {
    double magnitude;  // -1 stands for NaN
    int64_t key;
    bool operator<(const Candidate& other) const { return magnitude != other.magnitude ? magnitude > other.magnitude : key < other.key; }
  };

  // Leaves the best k; `nearly`: and some more, if that is quicker and makes room enough. What comes later must be before `bound_`.
  void shrink(bool nearly);

  int64_t k_, capacity_, size_ = 0;
  bool bounded_ = false;
  Candidate bound_{};
  std::unique_ptr<Candidate[]> candidates_;  // [capacity_], of which size_ are filled; never touched, never in memory
};

}  // namespace truesparse
