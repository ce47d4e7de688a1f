// Who does the work? The threads of the OpenMP runtime that torch has already loaded: a second runtime would fight it.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

namespace truesparse {

// "openmp: <path of the runtime>" or "serial: no OpenMP runtime loaded".
std::string threading();

// Calls body(context, slot, item) for every item in [0, items), each once. `slot` in [0, threads) is unique among the calls
// that run at the same time: it names the caller's scratch. Which slot gets which item is left to chance, so no result may depend on it.
// The first `before` items end before any other begins: two steps in one parallel region, since starting and ending one can cost
// milliseconds when other processes want the cores.
void parallel_for(int64_t items, int64_t threads, void (*body)(void* context, int64_t slot, int64_t item), void* context, int64_t before);

template <class Body>
void parallel_for(int64_t items, int64_t threads, Body&& body, int64_t before = 0) {
  parallel_for(
      items, threads, [](void* context, int64_t slot, int64_t item) { (*static_cast<std::remove_reference_t<Body>*>(context))(slot, item); },
      &body, before);
}

}  // namespace truesparse
