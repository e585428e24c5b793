// Vectors of 16 sums: AVX-512, and products of bfloat16 where the CPU has them.
#pragma once

#include <immintrin.h>

#include "vector.h"

namespace moejax {

using Floats = __m512;
using Bits = __m512i;
constexpr int kFloats = 16;
constexpr int kRegisters = 32;

inline Floats zeros() { return _mm512_setzero_ps(); }
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Floats a) { _mm512_storeu_ps(p, a); }
inline Floats broadcast(float a) { return _mm512_set1_ps(a); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }  // b where one of them is NaN

inline float widen_one(Float16 a) { return _cvtsh_ss(a.bits); }
inline void narrow(float a, Float16* result) { result->bits = _cvtss_sh(a, _MM_FROUND_TO_NEAREST_INT); }

inline Floats widen(const float* p) { return load(p); }
inline Floats widen(const Float16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Floats widen_bits(__m256i bits) {  // of bfloat16
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline Floats widen(const BFloat16* p) { return widen_bits(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

// Pairs of bfloat16: all of a vector, and the lower and the upper one of each.
inline Bits read_bits(const void* p) { return _mm512_loadu_si512(p); }
inline Floats lower_of(Bits pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline Floats upper_of(Bits pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xFFFF0000)));
}

// The first `count` elements at p, less than a vector holds, and 0 after them. Nothing behind them is touched.
inline __mmask32 first_of(int64_t count) { return (uint32_t{1} << count) - 1; }
inline Bits read_bits(const void* p, int64_t count) { return _mm512_maskz_loadu_epi16(first_of(count), p); }
inline __m256i read_half(const void* p, int64_t count) { return _mm256_maskz_loadu_epi16(first_of(count), p); }
inline Floats widen_some(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(first_of(count), p); }
inline Floats widen_some(const Float16* p, int64_t count) { return _mm512_cvtph_ps(read_half(p, count)); }
inline Floats widen_some(const BFloat16* p, int64_t count) { return widen_bits(read_half(p, count)); }
inline void store_some(float* p, Floats a, int64_t count) { _mm512_mask_storeu_ps(p, first_of(count), a); }

// The sums of the lanes of four vectors, in a fixed tree.
inline __m128 sums(Floats a, Floats b, Floats c, Floats d) {
  Floats ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
  Floats cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xEE));
  Floats abcd = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
  abcd = _mm512_add_ps(abcd, _mm512_permute_ps(abcd, 0x4E));
  abcd = _mm512_add_ps(abcd, _mm512_permute_ps(abcd, 0xB1));
  __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  return _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, abcd));
}
inline void store_sums(float* p, Floats a, Floats b, Floats c, Floats d) { _mm_storeu_ps(p, sums(a, b, c, d)); }
inline float sum_of(Floats a) { return _mm_cvtss_f32(sums(a, zeros(), zeros(), zeros())); }

inline float highest_of(Floats a) {
  __m256 half = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

}  // namespace moejax

#if defined(__AVX512BF16__)

namespace moejax {

template <>
struct Packs<BFloat16> {
  using Pack = __m512bh;
  static constexpr int kTogether = 2, kWidth = 2 * kFloats;
  static constexpr int kRegisters = 1;
  static Pack read(const BFloat16* p) { return (Pack)read_bits(p); }
  static Pack read_some(const BFloat16* p, int64_t count) { return (Pack)read_bits(p, count); }
  static Pack all(const BFloat16* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return (Pack)_mm512_set1_epi32(pair);
  }
  static Pack last(const BFloat16* p) { return (Pack)_mm512_set1_epi32(p->bits); }
  static Floats dot(Floats sum, Pack a, Pack b) { return _mm512_dpbf16_ps(sum, a, b); }
};

// `count` numbers, a multiple of what a vector holds.
inline void narrow_all(const float* a, int64_t count, BFloat16* result) {
  for (int64_t i = 0; i < count; i += kFloats) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(result + i), (__m256i)_mm512_cvtneps_pbh(load(a + i)));
  }
}

}  // namespace moejax

#else
#include "vector_pairs.h"
#endif
