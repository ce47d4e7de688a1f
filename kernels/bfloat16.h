// What is a bfloat16? The upper half of a float.
#pragma once

#include <cstdint>

namespace truesparse {

struct Bfloat16 {
  uint16_t bits;
};

}  // namespace truesparse
