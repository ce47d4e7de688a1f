// Includes the file named by KERNEL_FILE once per instruction set, each time in a namespace of its own and with only that
// instruction set turned on. No compiler flag is per file, so no inline function of the standard library can be compiled
// for a newer machine than the one it runs on; for the same reason a KERNEL_FILE uses nothing of the standard library.
//
// Each target says how many bytes a vector has, how many vectors of accumulators a tile has at most, and how many of them
// several rows share.
#define ISA scalar
#define VECTOR_BYTES 16
#define TILE_VECTORS 8
#define ACCUMULATORS 8
#include KERNEL_FILE
#undef ISA
#undef VECTOR_BYTES
#undef TILE_VECTORS
#undef ACCUMULATORS

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define ISA avx2
#define VECTOR_BYTES 32
#define TILE_VECTORS 8
#define ACCUMULATORS 8
#include KERNEL_FILE
#undef ISA
#undef VECTOR_BYTES
#undef TILE_VECTORS
#undef ACCUMULATORS
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#endif
#define ISA avx512
#define VECTOR_BYTES 64
#define TILE_VECTORS 8
#define ACCUMULATORS 16
#include KERNEL_FILE
#undef ISA
#undef VECTOR_BYTES
#undef TILE_VECTORS
#undef ACCUMULATORS
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#elif defined(__aarch64__)

#define ISA neon
#define VECTOR_BYTES 16
#define TILE_VECTORS 16
#define ACCUMULATORS 16
#include KERNEL_FILE
#undef ISA
#undef VECTOR_BYTES
#undef TILE_VECTORS
#undef ACCUMULATORS

#endif
