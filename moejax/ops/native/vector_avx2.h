// Vectors of 8 sums: AVX2, with FMA and F16C.
#pragma once

#include <immintrin.h>

#include "vector.h"

namespace moejax {

using Floats = __m256;
using Bits = __m256i;
constexpr int kFloats = 8;
constexpr int kRegisters = 16;

inline Floats zeros() { return _mm256_setzero_ps(); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Floats a) { _mm256_storeu_ps(p, a); }
inline Floats broadcast(float a) { return _mm256_set1_ps(a); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline Floats maximum(Floats a, Floats b) { return _mm256_max_ps(a, b); }  // b where one of them is NaN

inline float widen_one(Float16 a) { return _cvtsh_ss(a.bits); }
inline void narrow(float a, Float16* result) { result->bits = _cvtss_sh(a, _MM_FROUND_TO_NEAREST_INT); }

inline Floats widen(const float* p) { return load(p); }
inline Floats widen(const Float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline Floats widen_bits(__m128i bits) {  // of bfloat16
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Floats widen(const BFloat16* p) { return widen_bits(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }

// Pairs of bfloat16: all of a vector, and the lower and the upper one of each.
inline Bits read_bits(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Floats lower_of(Bits pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline Floats upper_of(Bits pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(0xFFFF0000)));
}

// The first `count` elements at p, less than a vector holds, and 0 after them. Nothing behind them is touched. AVX2 has
// masks for elements of 32 bits only: of 16 bits, it takes pairs, and the last one of an odd number on its own.
inline Bits first_of(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Bits read_bits(const void* p, int64_t count) {
  Bits bits = _mm256_maskload_epi32(static_cast<const int*>(p), first_of(count / 2));
  if (count % 2 == 0) return bits;
  const Bits place = _mm256_xor_si256(first_of(count / 2), first_of(count / 2 + 1));
  const Bits last = _mm256_set1_epi32(static_cast<const uint16_t*>(p)[count - 1]);
  return _mm256_or_si256(bits, _mm256_and_si256(place, last));
}
inline __m128i read_half(const void* p, int64_t count) { return _mm256_castsi256_si128(read_bits(p, count)); }
inline Floats widen_some(const float* p, int64_t count) { return _mm256_maskload_ps(p, first_of(count)); }
inline Floats widen_some(const Float16* p, int64_t count) { return _mm256_cvtph_ps(read_half(p, count)); }
inline Floats widen_some(const BFloat16* p, int64_t count) { return widen_bits(read_half(p, count)); }
inline void store_some(float* p, Floats a, int64_t count) { _mm256_maskstore_ps(p, first_of(count), a); }

// The sums of the lanes of four vectors, in a fixed tree.
inline __m128 sums(Floats a, Floats b, Floats c, Floats d) {
  auto halves = [](Floats v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); };
  __m128 p = halves(a), q = halves(b), r = halves(c), s = halves(d);
  __m128 pq = _mm_add_ps(_mm_unpacklo_ps(p, q), _mm_unpackhi_ps(p, q));
  __m128 rs = _mm_add_ps(_mm_unpacklo_ps(r, s), _mm_unpackhi_ps(r, s));
  return _mm_add_ps(_mm_movelh_ps(pq, rs), _mm_movehl_ps(rs, pq));
}
inline void store_sums(float* p, Floats a, Floats b, Floats c, Floats d) { _mm_storeu_ps(p, sums(a, b, c, d)); }
inline float sum_of(Floats a) { return _mm_cvtss_f32(sums(a, zeros(), zeros(), zeros())); }

inline float highest_of(Floats a) {
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

}  // namespace moejax

#include "vector_pairs.h"
