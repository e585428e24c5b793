// Vectors of float32 sums, and how a pack of elements of each dtype is multiplied into them.
//
// A dot product runs through its operands in packs, adds lane by lane, and sums the lanes at the end in one fixed tree.
// That order depends on the operands' length alone, so a row's result has the same bits whatever is computed beside it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace moejax {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float bits_to_float(uint32_t bits) {
  float a;
  std::memcpy(&a, &bits, sizeof a);
  return a;
}
inline uint32_t float_to_bits(float a) {
  uint32_t bits;
  std::memcpy(&bits, &a, sizeof bits);
  return bits;
}

inline float widen_one(float a) { return a; }
inline float widen_one(BFloat16 a) { return bits_to_float(static_cast<uint32_t>(a.bits) << 16); }

// To the nearest value of the dtype, ties to even.
inline void narrow(float a, float* result) { *result = a; }
inline void narrow(float a, BFloat16* result) {
  uint32_t bits = float_to_bits(a);
  uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  result->bits = a == a ? rounded : 0x7FC0;
}

// Elements of dtype T, `kWidth` at a time, or the first `count` of a pack and 0 after them. `all` has the same kTogether
// elements in every lane, `last` the first of them and 0. `dot` adds the products of two packs to float32 sums, kTogether
// in each lane.
template <typename T>
struct Packs;

}  // namespace moejax

// Each has the same functions: vectors Floats of kFloats numbers, tails, conversions of Float16, and Packs<BFloat16>.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "vector_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "vector_avx2.h"
#else
#include "vector_any.h"
#endif

namespace moejax {

template <typename T>
struct Packs {  // float32 and float16: as many elements as sums
  using Pack = Floats;
  static constexpr int kTogether = 1, kWidth = kFloats;
  static constexpr int kRegisters = 1;
  static Pack read(const T* p) { return widen(p); }
  static Pack read_some(const T* p, int64_t count) { return widen_some(p, count); }
  static Pack all(const T* p) { return broadcast(widen_one(*p)); }
  static Pack last(const T* p) { return all(p); }
  static Floats dot(Floats sum, Pack a, Pack b) { return multiply_add(a, b, sum); }
};

}  // namespace moejax
