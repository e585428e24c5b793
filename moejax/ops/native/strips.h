// x w^T for rows that lie anywhere and matrices that are packed in the order in which they are multiplied.
//
// Packed weights of O outputs and I inputs are strips of 64 outputs, [O / 64][I / N][64][N], N inputs of an output side
// by side: 2 of bfloat16, 1 of other dtypes. The last strip and the last inputs are filled up with zeros. One element (or
// pair) of a row, broadcast, multiplies a vector of outputs, so nothing is summed across lanes, weights are read in the
// order in which they lie, and each result is the sum over its inputs from first to last: its bits depend on its row and
// its weights alone, whatever is computed beside it.
#pragma once

#include <algorithm>
#include <type_traits>

#include "vector.h"

namespace moejax {

constexpr int64_t kStrip = 64;  // outputs
constexpr int kStripVectors = kStrip / kFloats;
constexpr int64_t kInputBlock = 128;  // inputs of a strip that stay in the first-level cache between its vectors

// Vectors of outputs, and rows, whose sums the registers hold beside a vector of weights and what is broadcast.
constexpr int kStripTileVectors = kRegisters == 32 ? 4 : 2;
template <typename T>
constexpr int kStripTileRows = kRegisters == 32 ? (Packs<T>::kRegisters == 1 ? 6 : 4) : (Packs<T>::kRegisters == 1 ? 4 : 3);

inline int64_t strips_of(int64_t outputs) { return (outputs + kStrip - 1) / kStrip; }

// Elements of a packed strip.
template <typename T>
inline int64_t strip_size(int64_t inputs) {
  constexpr int64_t n = Packs<T>::kTogether;
  return (inputs + n - 1) / n * n * kStrip;
}

// sum[r][kStrip] + the products of R rows x[r] with kStripTileVectors vectors of a strip, for the inputs `begin` to `end` - 1.
template <typename T, int R>
inline void strip_tile(const T* const* x, const T* w, int64_t begin, int64_t end, float* sum) {
  using P = Packs<T>;
  constexpr int64_t n = P::kTogether;
  constexpr int V = kStripTileVectors;
  Floats sums[R][V];
  for (int r = 0; r < R; r++) {
    for (int v = 0; v < V; v++) sums[r][v] = load(sum + r * kStrip + v * kFloats);
  }
  const int64_t whole = end - (end - begin) % n;
  w += begin * kStrip;
  for (int64_t i = begin; i < whole; i += n, w += n * kStrip) {
    typename P::Pack weights[V];
    for (int v = 0; v < V; v++) weights[v] = P::read(w + v * n * kFloats);
    for (int r = 0; r < R; r++) {
      const typename P::Pack row = P::all(x[r] + i);
      for (int v = 0; v < V; v++) sums[r][v] = P::dot(sums[r][v], weights[v], row);
    }
  }
  for (int r = 0; whole < end && r < R; r++) {  // half a pair: nothing behind it is touched
    const typename P::Pack row = P::last(x[r] + whole);
    for (int v = 0; v < V; v++) sums[r][v] = P::dot(sums[r][v], P::read(w + v * n * kFloats), row);
  }
  for (int r = 0; r < R; r++) {
    for (int v = 0; v < V; v++) store(sum + r * kStrip + v * kFloats, sums[r][v]);
  }
}

// sum[r][kStrip] + the products of R rows x[r] with the first `outputs` of a strip.
template <typename T, int R>
inline void add_strip(const T* const* x, const T* w, int64_t outputs, int64_t inputs, float* sum) {
  constexpr int V = kStripTileVectors;
  constexpr int64_t n = Packs<T>::kTogether;
  const int64_t block = V == kStripVectors ? std::max<int64_t>(inputs, 1) : kInputBlock;
  for (int64_t begin = 0; begin < inputs; begin += block) {
    for (int v = 0; v < kStripVectors && v * kFloats < outputs; v += V) {
      strip_tile<T, R>(x, w + v * n * kFloats, begin, std::min(inputs, begin + block), sum + v * kFloats);
    }
  }
}

// Calls run(rows as a constant, r) for tiles of rows r.
template <typename T, int R = kStripTileRows<T>, typename Run>
inline void for_tiles(int64_t rows, Run run) {
  int64_t r = 0;
  for (; r + R <= rows; r += R) run(std::integral_constant<int, R>(), r);
  if constexpr (R > 1) {
    if (r < rows) for_tiles<T, R - 1>(rows - r, [&](auto some, int64_t more) { run(some, r + more); });
  }
}

// y[r * stride + o] of `rows` rows x[r] and the `outputs` o of packed weights from their first strip on.
template <typename T>
void multiply(const T* const* x, int64_t rows, const T* w, int64_t outputs, int64_t inputs, float* y, int64_t stride) {
  const int64_t size = strip_size<T>(inputs);
  for (int64_t o = 0; o < outputs; o += kStrip, w += size) {
    const int64_t some = std::min(kStrip, outputs - o);
    for_tiles<T>(rows, [&](auto tile_rows, int64_t r) {
      alignas(64) float sum[tile_rows * kStrip] = {};
      add_strip<T, tile_rows>(x + r, w, some, inputs, sum);
      for (int i = 0; i < tile_rows; i++) std::memcpy(y + (r + i) * stride + o, sum + i * kStrip, some * sizeof(float));
    });
  }
}

// sum[r][kStrip] += the products of `rows` rows x[r] with one strip.
template <typename T>
void add_multiplied(const T* const* x, int64_t rows, const T* strip, int64_t inputs, float* sum) {
  for_tiles<T>(rows, [&](auto tile_rows, int64_t r) {
    add_strip<T, tile_rows>(x + r, strip, kStrip, inputs, sum + r * kStrip);
  });
}

}  // namespace moejax
