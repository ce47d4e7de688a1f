#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace truesparse {
namespace {

constexpr const char* names[] = {"scalar", "avx2", "avx512", "neon"};
constexpr int unresolved = -1;
std::atomic<int> forced{unresolved};

std::string joined(const std::vector<std::string>& words) {
  std::string all;
  for (const auto& word : words) all += (all.empty() ? "" : ", ") + word;
  return all;
}

Isa parse(const std::string& name, const std::string& origin) {
  for (int i = 0; i < static_cast<int>(Isa::count); ++i) {
    if (name != names[i]) continue;
    if (isa_supported(static_cast<Isa>(i))) return static_cast<Isa>(i);
    throw std::invalid_argument(origin + " asks for instruction set '" + name + "', which this machine does not have; it has: " +
                                joined(supported_isas()));
  }
  throw std::invalid_argument(origin + " asks for an unknown instruction set '" + name +
                              "'; known: scalar, avx2, avx512, neon; this machine has: " + joined(supported_isas()));
}

Isa best_isa() {
  Isa best = Isa::scalar;
  for (int i = 0; i < static_cast<int>(Isa::count); ++i)
    if (isa_supported(static_cast<Isa>(i))) best = static_cast<Isa>(i);
  return best;
}

}  // namespace

const char* isa_name(Isa isa) { return names[static_cast<int>(isa)]; }

bool isa_supported(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return true;
#if defined(__x86_64__)
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
#elif defined(__aarch64__)
    case Isa::neon:
      return true;
#endif
    default:
      return false;
  }
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> found;
  for (int i = 0; i < static_cast<int>(Isa::count); ++i)
    if (isa_supported(static_cast<Isa>(i))) found.push_back(names[i]);
  return found;
}

Isa current_isa() {
  const int chosen = forced.load(std::memory_order_relaxed);
  if (chosen != unresolved) return static_cast<Isa>(chosen);
  const char* wanted = std::getenv("TRUESPARSE_ISA");
  const Isa isa = wanted && *wanted ? parse(wanted, "the environment variable TRUESPARSE_ISA") : best_isa();
  forced.store(static_cast<int>(isa), std::memory_order_relaxed);
  return isa;
}

void use_isa(const std::string& name) {
  forced.store(name.empty() ? unresolved : static_cast<int>(parse(name, "use_isa")), std::memory_order_relaxed);
}

}  // namespace truesparse
