// How do layers run one after the other with nothing between them? As a list of calls over places in memory that are planned beforehand.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace truesparse {

// One step: y of x, and of what is added, which may be null. All are contiguous, of sizes that the call knows.
using Call = std::function<void(const float* x, const float* added, float* y)>;

// Numbers that lie in a box, read in one way and written in another; all else of what is written becomes 0.
struct Copy {
  int64_t from_start, to_start, size;  // size: of all that is written
  bool zeros;                          // whether there is anything else
  std::vector<int64_t> extents, from_strides, to_strides;
};

void copy(const Copy& copy, const float* from, float* to);

// y [rows] = the means of x [rows, count].
void mean(const float* x, int64_t rows, int64_t count, float* y);

// y [batch, rows] = x [batch, columns] W^T + bias, which is [rows] or null; negative ones become 0 if `relu`. For a few weights: no more than loops.
void small_product(const float* weight, const float* bias, bool relu, int64_t rows, int64_t columns, int64_t batch, const float* x, float* y);

class Program {
 public:
  // Places are numbers: the first `outside` are given with each run, then come those at `offsets`, in floats, of a memory of `size` floats.
  Program(int64_t outside, std::vector<int64_t> offsets, int64_t size) : outside_(outside), size_(size), offsets_(std::move(offsets)) {}

  // `added` negative: nothing is. Throws std::out_of_range if there is no such place.
  void add(Call call, int64_t x, int64_t added, int64_t y);

  // What several threads may do at a time. Throws std::invalid_argument unless there are as many addresses as places outside.
  void run(const std::vector<uintptr_t>& addresses) const;

 private:
  struct Step {
    Call call;
    int64_t x, added, y;
  };

  int64_t outside_, size_;
  std::vector<int64_t> offsets_;
  std::vector<Step> steps_;
};

}  // namespace truesparse
