// Which empty positions have the largest gradients? A running selection over slabs of rows, never the whole matrix.
//
// The order is total, so the answer depends neither on the cut into slabs nor on chance: larger |gradient| first, then the
// smaller linear position. NaN comes after every number. Every empty position is eligible, an exact zero too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace truesparse {

class TopK {
 public:
  explicit TopK(int64_t k);

  // gradients [rows, columns], rows `row_start` on of the whole; indptr and indices are the whole topology's.
  template <class T>
  void push(const T* gradients, int64_t row_start, int64_t rows, int64_t columns, const int32_t* indptr, const int32_t* indices);

  // Writes linear positions, ascending, and returns how many: min(k, number of empty positions seen).
  int64_t result(int64_t* keys);

 private:
  struct Candidate {
    double magnitude;  // -1 stands for NaN
    int64_t key;
    bool operator<(const Candidate& other) const { return magnitude != other.magnitude ? magnitude > other.magnitude : key < other.key; }
  };

  void add(double magnitude, int64_t key);
  void shrink();

  int64_t k_;
  size_t capacity_;
  bool bounded_ = false;  // k candidates are known, and `worst_` is the last of them
  Candidate worst_{};
  std::vector<Candidate> candidates_;
};

}  // namespace truesparse
