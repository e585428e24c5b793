// Vectors of float32 sums, and how a pack of elements of each dtype is multiplied into them.
//
// A dot product runs through its operands in packs, adds lane by lane, and sums the lanes at the end in one fixed tree.
// That order depends on the operands' length alone, so a row's result has the same bits whatever is computed beside it.
#pragma once

#include <immintrin.h>

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

inline float widen_one(float a) { return a; }
inline float widen_one(Float16 a) { return _cvtsh_ss(a.bits); }
inline float widen_one(BFloat16 a) { return bits_to_float(static_cast<uint32_t>(a.bits) << 16); }

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

using Floats = __m512;
constexpr int kFloats = 16;
constexpr int kRegisters = 32;

inline Floats zeros() { return _mm512_setzero_ps(); }
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Floats a) { _mm512_storeu_ps(p, a); }
inline Floats widen(const float* p) { return load(p); }
inline Floats broadcast(float a) { return _mm512_set1_ps(a); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }  // b where one of them is NaN
inline Floats widen(const Float16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Floats widen_bits(__m256i bits) {  // of bfloat16
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline Floats widen(const BFloat16* p) { return widen_bits(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

// The first `count` elements at p, less than a vector holds, and 0 after them. Nothing behind them is touched.
inline __mmask32 first_of(int64_t count) { return (uint32_t{1} << count) - 1; }
inline __m512i read_bits(const void* p, int64_t count) { return _mm512_maskz_loadu_epi16(first_of(count), p); }
inline __m256i read_half(const void* p, int64_t count) { return _mm256_maskz_loadu_epi16(first_of(count), p); }
inline Floats widen_some(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(first_of(count), p); }
inline Floats widen_some(const Float16* p, int64_t count) { return _mm512_cvtph_ps(read_half(p, count)); }
inline Floats widen_some(const BFloat16* p, int64_t count) { return widen_bits(read_half(p, count)); }
inline void store_some(float* p, Floats a, int64_t count) { _mm512_mask_storeu_ps(p, first_of(count), a); }

// The sums of the lanes of four vectors.
inline __m128 sums(Floats a, Floats b, Floats c, Floats d) {
  Floats ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
  Floats cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xEE));
  Floats abcd = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
  abcd = _mm512_add_ps(abcd, _mm512_permute_ps(abcd, 0x4E));
  abcd = _mm512_add_ps(abcd, _mm512_permute_ps(abcd, 0xB1));
  __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  return _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, abcd));
}

// The same of sixteen, sum[row][output], into y[row * stride + output]: half as many shuffles for each, the same tree.
inline void store_sums_of_four_rows(const Floats (*sum)[4], float* y, int64_t stride) {
  auto quarters = [sum](int o) {  // of rows 0, 1, 2, 3, a row in each 128 bits
    auto halves = [](Floats a, Floats b) {
      return _mm512_add_ps(_mm512_mask_blend_ps(0xFF00, a, b), _mm512_shuffle_f32x4(a, b, 0x4E));
    };
    Floats even = halves(sum[0][o], sum[2][o]), odd = halves(sum[1][o], sum[3][o]);
    Floats swapped = _mm512_mask_blend_ps(0x0F0F, even, odd);
    return _mm512_add_ps(_mm512_mask_blend_ps(0xF0F0, even, odd), _mm512_shuffle_f32x4(swapped, swapped, 0xB1));
  };
  auto eighths = [](Floats a, Floats b) {
    return _mm512_add_ps(_mm512_mask_blend_ps(0xCCCC, a, b), _mm512_shuffle_ps(a, b, 0x4E));
  };
  Floats even = eighths(quarters(0), quarters(2)), odd = eighths(quarters(1), quarters(3));
  Floats swapped = _mm512_mask_blend_ps(0x5555, even, odd);
  Floats all = _mm512_add_ps(_mm512_mask_blend_ps(0xAAAA, even, odd), _mm512_permute_ps(swapped, 0xB1));
  _mm_storeu_ps(y, _mm512_castps512_ps128(all));
  _mm_storeu_ps(y + stride, _mm512_extractf32x4_ps(all, 1));
  _mm_storeu_ps(y + 2 * stride, _mm512_extractf32x4_ps(all, 2));
  _mm_storeu_ps(y + 3 * stride, _mm512_extractf32x4_ps(all, 3));
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

using Floats = __m256;
constexpr int kFloats = 8;
constexpr int kRegisters = 16;

inline Floats zeros() { return _mm256_setzero_ps(); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Floats a) { _mm256_storeu_ps(p, a); }
inline Floats widen(const float* p) { return load(p); }
inline Floats broadcast(float a) { return _mm256_set1_ps(a); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats maximum(Floats a, Floats b) { return _mm256_max_ps(a, b); }  // b where one of them is NaN
inline Floats widen(const Float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline Floats widen_bits(__m128i bits) {  // of bfloat16
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Floats widen(const BFloat16* p) { return widen_bits(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }

// The first `count` elements at p, less than a vector holds, and 0 after them. Nothing behind them is touched. AVX2 has
// masks for elements of 32 bits only: of 16 bits, it takes pairs, and the last one of an odd number on its own.
inline __m256i first_of(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i read_bits(const void* p, int64_t count) {
  __m256i bits = _mm256_maskload_epi32(static_cast<const int*>(p), first_of(count / 2));
  if (count % 2 == 0) return bits;
  const __m256i place = _mm256_xor_si256(first_of(count / 2), first_of(count / 2 + 1));
  const __m256i last = _mm256_set1_epi32(static_cast<const uint16_t*>(p)[count - 1]);
  return _mm256_or_si256(bits, _mm256_and_si256(place, last));
}
inline __m128i read_half(const void* p, int64_t count) { return _mm256_castsi256_si128(read_bits(p, count)); }
inline Floats widen_some(const float* p, int64_t count) { return _mm256_maskload_ps(p, first_of(count)); }
inline Floats widen_some(const Float16* p, int64_t count) { return _mm256_cvtph_ps(read_half(p, count)); }
inline Floats widen_some(const BFloat16* p, int64_t count) { return widen_bits(read_half(p, count)); }
inline void store_some(float* p, Floats a, int64_t count) { _mm256_maskstore_ps(p, first_of(count), a); }

// The sums of the lanes of four vectors.
inline __m128 sums(Floats a, Floats b, Floats c, Floats d) {
  auto halves = [](Floats v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); };
  __m128 p = halves(a), q = halves(b), r = halves(c), s = halves(d);
  __m128 pq = _mm_add_ps(_mm_unpacklo_ps(p, q), _mm_unpackhi_ps(p, q));
  __m128 rs = _mm_add_ps(_mm_unpacklo_ps(r, s), _mm_unpackhi_ps(r, s));
  return _mm_add_ps(_mm_movelh_ps(pq, rs), _mm_movehl_ps(rs, pq));
}

// The same of sixteen, sum[row][output], into y[row * stride + output].
inline void store_sums_of_four_rows(const Floats (*sum)[4], float* y, int64_t stride) {
  for (int r = 0; r < 4; r++) _mm_storeu_ps(y + r * stride, sums(sum[r][0], sum[r][1], sum[r][2], sum[r][3]));
}

#else
#error "needs a CPU with AVX2, FMA and F16C, or with AVX-512"
#endif

// The sum of the lanes, in a fixed tree, and the highest of them.
inline float sum_of(Floats a) { return _mm_cvtss_f32(sums(a, zeros(), zeros(), zeros())); }
inline float highest_of(Floats a) {
#if defined(__AVX512F__)
  __m256 half = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
#else
  __m256 half = a;
#endif
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// Elements of dtype T, `kWidth` at a time, or the first `count` of a pack and 0 after them. `all` has the same kTogether
// elements in every lane, `last` the first of them and 0. `dot` adds the products of two packs to float32 sums, kTogether
// in each lane.
template <typename T>
struct Packs {  // float32 and float16: as many elements as sums
  using Pack = Floats;
  static constexpr int kTogether = 1, kWidth = kFloats;
  static constexpr int kRegisters = 1;
  static Pack read(const float* p) { return load(p); }
  static Pack read(const Float16* p) { return widen(p); }
  static Pack read_some(const T* p, int64_t count) { return widen_some(p, count); }
  static Pack all(const T* p) { return broadcast(widen_one(*p)); }
  static Pack last(const T* p) { return all(p); }
  static Floats dot(Floats sum, Pack a, Pack b) { return multiply_add(a, b, sum); }
};

#if defined(__AVX512BF16__)

template <>
struct Packs<BFloat16> {
  using Pack = __m512bh;
  static constexpr int kTogether = 2, kWidth = 2 * kFloats;
  static constexpr int kRegisters = 1;
  static Pack read(const BFloat16* p) { return (Pack)_mm512_loadu_si512(p); }
  static Pack read_some(const BFloat16* p, int64_t count) { return (Pack)read_bits(p, count); }
  static Pack all(const BFloat16* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return (Pack)_mm512_set1_epi32(pair);
  }
  static Pack last(const BFloat16* p) { return (Pack)_mm512_set1_epi32(p->bits); }
  static Floats dot(Floats sum, Pack a, Pack b) { return _mm512_dpbf16_ps(sum, a, b); }
};

#else

template <>
struct Packs<BFloat16> {  // pairs of elements, widened in place: the upper one masked, the lower one shifted
  struct Pack {
    Floats lower, upper;
  };
  static constexpr int kTogether = 2, kWidth = 2 * kFloats;
  static constexpr int kRegisters = 2;
#if defined(__AVX512F__)
  static Pack read(const BFloat16* p) { return widen_pairs(_mm512_loadu_si512(p)); }
  static Pack widen_pairs(__m512i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(0xFFFF0000)))};
  }
#else
  static Pack read(const BFloat16* p) { return widen_pairs(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static Pack widen_pairs(__m256i bits) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(0xFFFF0000)))};
  }
#endif
  static Pack read_some(const BFloat16* p, int64_t count) { return widen_pairs(read_bits(p, count)); }
  static Pack all(const BFloat16* p) { return {broadcast(widen_one(p[0])), broadcast(widen_one(p[1]))}; }
  static Pack last(const BFloat16* p) { return {broadcast(widen_one(*p)), zeros()}; }
  static Floats dot(Floats sum, Pack a, Pack b) {
    return multiply_add(a.lower, b.lower, multiply_add(a.upper, b.upper, sum));
  }
};

#endif

}  // namespace moejax
