// Products of bfloat16 on a CPU that has no instruction for them, and rounding to it.
#pragma once

#include "vector.h"

namespace moejax {

template <>
struct Packs<BFloat16> {  // pairs of elements, widened in place
  struct Pack {
    Floats lower, upper;
  };
  static constexpr int kTogether = 2, kWidth = 2 * kFloats;
  static constexpr int kRegisters = 2;
  static Pack widen_pairs(Bits pairs) { return {lower_of(pairs), upper_of(pairs)}; }
  static Pack read(const BFloat16* p) { return widen_pairs(read_bits(p)); }
  static Pack read_some(const BFloat16* p, int64_t count) { return widen_pairs(read_bits(p, count)); }
  static Pack all(const BFloat16* p) {
    float pair;
    std::memcpy(&pair, p, sizeof pair);
    return widen_pairs((Bits)broadcast(pair));
  }
  static Pack last(const BFloat16* p) { return {broadcast(widen_one(*p)), zeros()}; }
  static Floats dot(Floats sum, Pack a, Pack b) {
    return multiply_add(a.lower, b.lower, multiply_add(a.upper, b.upper, sum));
  }
};

// `count` numbers, a multiple of what a vector holds.
inline void narrow_all(const float* a, int64_t count, BFloat16* result) {
  for (int64_t i = 0; i < count; i++) narrow(a[i], result + i);
}

}  // namespace moejax
