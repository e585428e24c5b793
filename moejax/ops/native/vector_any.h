// Vectors of 4 sums by the vector extensions of GCC and Clang. What they cannot say is in one of two more files.
#pragma once

#include "vector.h"

namespace moejax {

typedef float Floats __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(16)));
typedef uint16_t Halves __attribute__((vector_size(8)));
constexpr int kFloats = 4;

template <typename Vector>
inline Vector read(const void* p) {
  Vector a;
  std::memcpy(&a, p, sizeof a);
  return a;
}
inline Floats zeros() { return Floats{}; }
inline Floats load(const float* p) { return read<Floats>(p); }
inline void store(float* p, Floats a) { std::memcpy(p, &a, sizeof a); }
inline Floats broadcast(float a) { return Floats{a, a, a, a}; }

// The first `count` elements at p, less than a vector holds, and 0 after them. Nothing behind them is touched.
template <typename Vector, typename T>
inline Vector read_some(const T* p, int64_t count) {
  T some[sizeof(Vector) / sizeof(T)] = {};
  for (int64_t i = 0; i < count; i++) some[i] = p[i];
  return read<Vector>(some);
}

// Pairs of bfloat16: all of a vector, its first, and the lower and the upper one of each.
inline Bits read_bits(const void* p) { return read<Bits>(p); }
inline Bits read_bits(const BFloat16* p, int64_t count) { return read_some<Bits>(p, count); }
inline Floats lower_of(Bits pairs) { return (Floats)(pairs << 16); }
inline Floats upper_of(Bits pairs) { return (Floats)(pairs & 0xFFFF0000u); }

}  // namespace moejax

// Both have: kRegisters, multiply_add, maximum, sums, conversions of Float16, Packs<BFloat16>.
#if defined(__aarch64__)
#include "vector_neon.h"
#else
#include "vector_plain.h"
#endif

namespace moejax {

inline Floats widen_bits(Halves bits) { return (Floats)(__builtin_convertvector(bits, Bits) << 16); }  // of bfloat16
inline Floats widen(const float* p) { return load(p); }
inline Floats widen(const Float16* p) { return widen_float16(read<Halves>(p)); }
inline Floats widen(const BFloat16* p) { return widen_bits(read<Halves>(p)); }

inline Floats widen_some(const float* p, int64_t count) { return read_some<Floats>(p, count); }
inline Floats widen_some(const Float16* p, int64_t count) { return widen_float16(read_some<Halves>(p, count)); }
inline Floats widen_some(const BFloat16* p, int64_t count) { return widen_bits(read_some<Halves>(p, count)); }
inline void store_some(float* p, Floats a, int64_t count) {
  for (int64_t i = 0; i < count; i++) p[i] = a[i];
}

inline void store_sums(float* p, Floats a, Floats b, Floats c, Floats d) { store(p, sums(a, b, c, d)); }
inline float sum_of(Floats a) { return (a[0] + a[1]) + (a[2] + a[3]); }
inline float highest_of(Floats a) {
  const float lower = a[0] > a[1] ? a[0] : a[1], upper = a[2] > a[3] ? a[2] : a[3];
  return lower > upper ? lower : upper;
}

}  // namespace moejax
