// Which instruction sets are the kernels compiled for, and which one is in force?
#pragma once

#include <string>
#include <vector>

namespace truesparse {

enum class Isa { scalar, avx2, avx512, neon, count };

const char* isa_name(Isa isa);
bool isa_supported(Isa isa);
std::vector<std::string> supported_isas();  // best last

// The one in force: forced by use_isa, else by the environment variable TRUESPARSE_ISA, else the best supported one.
// Throws std::invalid_argument when the environment variable names no instruction set this machine has.
Isa current_isa();

// Forces one by name; an empty name goes back to the default. Throws std::invalid_argument as above.
void use_isa(const std::string& name);

}  // namespace truesparse
