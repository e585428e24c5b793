// What vector_any.h needs, on AArch64: every such CPU fuses products and converts Float16, and some multiply bfloat16.
#pragma once

#include <arm_neon.h>

#include "vector_any.h"

namespace moejax {

constexpr int kRegisters = 32;

inline Floats multiply_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline Floats maximum(Floats a, Floats b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }  // b where one of them is NaN

// The sums of the lanes of four vectors, in a fixed tree.
inline Floats sums(Floats a, Floats b, Floats c, Floats d) { return vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)); }

inline Floats widen_float16(Halves halves) { return vcvt_f32_f16(vreinterpret_f16_u16(halves)); }
inline float widen_one(Float16 a) {
  __fp16 half;
  std::memcpy(&half, &a, sizeof half);
  return half;
}
inline void narrow(float a, Float16* result) {
  const __fp16 half = a;
  std::memcpy(result, &half, sizeof half);
}

}  // namespace moejax

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)

namespace moejax {

// BFDOT adds the two products of a pair and then the sum, each time rounded to odd, whatever FPCR says.
template <>
struct Packs<BFloat16> {
  using Pack = bfloat16x8_t;
  static constexpr int kTogether = 2, kWidth = 2 * kFloats;
  static constexpr int kRegisters = 1;
  static Pack read(const BFloat16* p) { return vreinterpretq_bf16_u32(read_bits(p)); }
  static Pack read_some(const BFloat16* p, int64_t count) { return vreinterpretq_bf16_u32(read_bits(p, count)); }
  static Pack all(const BFloat16* p) {
    uint32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return vreinterpretq_bf16_u32(vdupq_n_u32(pair));
  }
  static Pack last(const BFloat16* p) { return vreinterpretq_bf16_u32(vdupq_n_u32(p->bits)); }
  static Floats dot(Floats sum, Pack a, Pack b) { return vbfdotq_f32(sum, a, b); }
};

// `count` numbers, a multiple of what a vector holds.
inline void narrow_all(const float* a, int64_t count, BFloat16* result) {
  for (int64_t i = 0; i < count; i += kFloats) {
    const bfloat16x4_t rounded = vcvt_bf16_f32(load(a + i));
    std::memcpy(result + i, &rounded, sizeof rounded);
  }
}

}  // namespace moejax

#else
#include "vector_pairs.h"
#endif
