// Do these tests run what they are meant to run: every instruction set, and more than one thread?
#include <doctest/doctest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

#include "cases.h"
#include "threads.h"

namespace truesparse::testing {

TEST_CASE("the instruction sets") {
  const std::vector<std::string> supported = supported_isas();
  CHECK(supported.front() == "scalar");
#if defined(__aarch64__)
  CHECK(supported.back() == "neon");
#endif
  for (const std::string& isa : isas()) {
    use_isa(isa);
    CHECK(isa_name(current_isa()) == isa);
    MESSAGE("tested: ", isa);
  }
  CHECK_THROWS_AS(use_isa("mmx"), std::invalid_argument);
}

TEST_CASE("the OpenMP runtime is found") { CHECK(threading().rfind("openmp: ", 0) == 0); }

TEST_CASE("every item is worked on once, the first ones before the others") {
  for (const int64_t items : {0, 1, 2, 3, 100})
    for (const int64_t threads : {1, 2, 5})
      for (const int64_t before : {int64_t{0}, items / 3, items}) {
        std::vector<int> done(items, 0);
        std::atomic<int64_t> ended{0};
        std::atomic<bool> in_order{true}, slots_fit{true};
        parallel_for(
            items, threads,
            [&](int64_t slot, int64_t item) {
              if (slot < 0 || slot >= threads) slots_fit = false;
              if (item >= before && ended < before) in_order = false;
              ++done[item];
              if (item < before) ++ended;
            },
            before);
        CHECK(difference(done, std::vector<int>(items, 1)) == "");
        CHECK(in_order);
        CHECK(slots_fit);
      }
}

}  // namespace truesparse::testing
