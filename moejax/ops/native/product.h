// x w^T for rows that lie anywhere and weights [outputs, depth].
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "vector.h"

namespace moejax {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

// The sums of the lanes of sixteen vectors, sum[row][output], into y[row * stride + output]: half as many shuffles for each, the same tree
// as sums().
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

#else

// The sums of the lanes of sixteen vectors, sum[row][output], into y[row * stride + output].
inline void store_sums_of_four_rows(const Floats (*sum)[4], float* y, int64_t stride) {
  for (int r = 0; r < 4; r++) _mm_storeu_ps(y + r * stride, sums(sum[r][0], sum[r][1], sum[r][2], sum[r][3]));
}

#endif

constexpr int kOutputs = 4;  // weights' rows of a tile
// Rows of a tile, such that its sums, the weights and one row's pack fit the registers.
template <typename T>
constexpr int kTileRows = kFloats == 16 ? (Packs<T>::kRegisters == 1 ? 6 : 5) : 2;
constexpr int64_t kRowBlock = 96;  // rows that stay in the second-level cache while the weights of a task pass

// Adds the products of R rows x[r] with O rows of w to their sums, for the first `whole` elements, each sum in the same
// order. Weights that come from memory (`kStream`) are read in the order in which they lie, which the CPU foresees: it
// loses a third to a half of its bandwidth to four streams at once. The rows that follow find them in a cache.
template <bool kStream, typename T, int R, int O>
inline void add_products(const T* const* x, const T* w, int64_t depth, int64_t whole, Floats (&sum)[R][kOutputs]) {
  using P = Packs<T>;
  if (kStream) {
    for (int o = 0; o < O; o++) {
      for (int64_t d = 0; d < whole; d += P::kWidth) {
        typename P::Pack weights = P::read(w + o * depth + d);
        for (int r = 0; r < R; r++) sum[r][o] = P::dot(sum[r][o], P::read(x[r] + d), weights);
      }
    }
    return;
  }
  for (int64_t d = 0; d < whole; d += P::kWidth) {
    typename P::Pack weights[O];
    for (int o = 0; o < O; o++) weights[o] = P::read(w + o * depth + d);
    for (int r = 0; r < R; r++) {
      typename P::Pack row = P::read(x[r] + d);
      for (int o = 0; o < O; o++) sum[r][o] = P::dot(sum[r][o], row, weights[o]);
    }
  }
}

// y[r * stride + o] for R rows x[r] and O rows of w, at most kOutputs.
template <bool kStream, typename T, int R, int O>
inline void tile(const T* const* x, const T* w, int64_t depth, float* y, int64_t stride) {
  using P = Packs<T>;
  Floats sum[R][kOutputs];
  for (int r = 0; r < R; r++) {
    for (int o = 0; o < kOutputs; o++) sum[r][o] = zeros();
  }
  const int64_t rest = depth % P::kWidth, whole = depth - rest;
  add_products<kStream, T, R, O>(x, w, depth, whole, sum);
  if (rest) {
    typename P::Pack weights[O];
    for (int o = 0; o < O; o++) weights[o] = P::read_some(w + o * depth + whole, rest);
    for (int r = 0; r < R; r++) {
      typename P::Pack row = P::read_some(x[r] + whole, rest);
      for (int o = 0; o < O; o++) sum[r][o] = P::dot(sum[r][o], row, weights[o]);
    }
  }
  constexpr int kFour = O == kOutputs ? R / 4 * 4 : 0;
  for (int r = 0; r < kFour; r += 4) store_sums_of_four_rows(sum + r, y + r * stride, stride);
  for (int r = kFour; r < R; r++) {
    __m128 total = sums(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
    if constexpr (O == kOutputs) {
      _mm_storeu_ps(y + r * stride, total);
    } else {
      alignas(16) float all[kOutputs];
      _mm_store_ps(all, total);
      std::memcpy(y + r * stride, all, O * sizeof(float));
    }
  }
}

template <bool kStream, typename T, int O, int R = kTileRows<T>>
inline void tile_rows(int64_t rows, const T* const* x, const T* w, int64_t depth, float* y, int64_t stride) {
  if constexpr (R > 0) {
    if (rows == R) return tile<kStream, T, R, O>(x, w, depth, y, stride);
    tile_rows<kStream, T, O, R - 1>(rows, x, w, depth, y, stride);
  }
}

// y[r * stride + o] of `rows` rows x[r] and O rows of w, which the first tile of rows brings in.
template <typename T, int O>
inline void strip(const T* const* x, int64_t rows, const T* w, int64_t depth, float* y, int64_t stride) {
  constexpr int64_t kRows = kTileRows<T>;
  tile_rows<true, T, O>(std::min(kRows, rows), x, w, depth, y, stride);
  for (int64_t r = kRows; r < rows; r += kRows) {
    tile_rows<false, T, O>(std::min(kRows, rows - r), x + r, w, depth, y + r * stride, stride);
  }
}

// y[r * stride + o] of `rows` rows x[r] and `outputs` rows of w.
template <typename T>
void product(const T* const* x, int64_t rows, const T* w, int64_t outputs, int64_t depth, float* y, int64_t stride) {
  for (int64_t block = 0; block < rows; block += kRowBlock) {
    const int64_t count = std::min(kRowBlock, rows - block);
    float* target = y + block * stride;
    int64_t o = 0;
    for (; o + kOutputs <= outputs; o += kOutputs) {
      strip<T, kOutputs>(x + block, count, w + o * depth, depth, target + o, stride);
    }
    for (; o < outputs; o++) strip<T, 1>(x + block, count, w + o * depth, depth, target + o, stride);
  }
}

}  // namespace moejax
