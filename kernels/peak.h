// How many multiply-adds a second can this machine do at best? The roof under which every kernel stays.
#pragma once

#include <cstdint>

#include "isa.h"

namespace truesparse {

// Each of `threads` threads does `rounds` rounds of float32 multiply-adds of `isa`, all operands in registers. How many those were.
int64_t multiply_adds(Isa isa, int64_t rounds, int64_t threads);

}  // namespace truesparse
