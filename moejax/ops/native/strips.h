// x w^T for rows that lie anywhere and matrices that are packed in the order in which they are multiplied.
//
// Packed weights of O outputs and I inputs are strips of W = 64 outputs, [O / W][I / N][W][N], N inputs of an output side by
// side: 2 of bfloat16, 1 of other dtypes. Where O < 64, W is O rounded up to 16. The last strip and the last inputs are
// filled up with zeros (`moejax/weights/strips.py` is the same in Python). One element (or pair) of a row, broadcast,
// multiplies a vector of outputs, so nothing is summed across lanes, weights are read in the order in which they lie, and
// each result is the sum over its inputs from first to last: its bits depend on its row and its weights alone, whatever is
// computed beside it.
#pragma once

#include <algorithm>
#include <type_traits>

#include "vector.h"

namespace moejax {

constexpr int64_t kStrip = 64;  // outputs
constexpr int64_t kPart = 16;   // outputs that strips have multiples of, the fewest that a task computes
constexpr int kStripVectors = kStrip / kFloats;
constexpr int64_t kInputBlock = 128;  // inputs of a strip that stay in the first-level cache between its vectors

// Rows of a tile, and vectors of outputs, whose sums the registers hold beside weights and what is broadcast.
template <typename T>
constexpr int kStripTileRows = kRegisters == 32 ? (Packs<T>::kRegisters == 1 ? 6 : 4) : (Packs<T>::kRegisters == 1 ? 4 : 3);
constexpr int tile_vectors(int rows) {
  int vectors = kStripVectors;
  while (vectors > 1 && vectors * rows > (kRegisters == 32 ? 24 : 8)) vectors /= 2;
  return vectors;
}

inline int64_t strips_of(int64_t outputs) { return (outputs + kStrip - 1) / kStrip; }
inline int64_t strip_width(int64_t outputs) { return std::min(kStrip, (outputs + kPart - 1) / kPart * kPart); }

// Packed weights of a matrix [outputs, inputs].
template <typename T>
struct Packed {
  const T* weights;
  int64_t outputs, inputs;

  // Elements of it, with what fills it up.
  static int64_t size(int64_t outputs, int64_t inputs) {
    constexpr int64_t n = Packs<T>::kTogether;
    return strips_of(outputs) * ((inputs + n - 1) / n * n) * strip_width(outputs);
  }
  // The same of the matrix that comes after `count` of its kind.
  Packed after(int64_t count) const { return {weights + count * size(outputs, inputs), outputs, inputs}; }
};

// sum[r][kStrip] + the products of R rows x[r] with V vectors of a strip of `width`, for the inputs `begin` to `end` - 1.
// On its own, so that a compiler keeps all sums in registers: inlined into its callers, GCC makes it a third as fast.
template <typename T, int R, int V>
[[gnu::noinline]] void strip_tile(const T* const* x, const T* w, int64_t width, int64_t begin, int64_t end, float* sum) {
  using P = Packs<T>;
  constexpr int64_t n = P::kTogether;
  Floats sums[R][V];
  for (int r = 0; r < R; r++) {
    for (int v = 0; v < V; v++) sums[r][v] = load(sum + r * kStrip + v * kFloats);
  }
  const int64_t whole = end - (end - begin) % n;
  w += begin * width;
  for (int64_t i = begin; i < whole; i += n, w += n * width) {
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

// The same for any number of vectors, V at a time.
template <typename T, int R, int V = tile_vectors(R)>
inline void strip_tiles(const T* const* x, const T* w, int64_t width, int64_t vectors, int64_t begin, int64_t end, float* sum) {
  constexpr int64_t n = Packs<T>::kTogether;
  int64_t v = 0;
  for (; v + V <= vectors; v += V) strip_tile<T, R, V>(x, w + v * n * kFloats, width, begin, end, sum + v * kFloats);
  if constexpr (V > 1) {
    if (v < vectors) {
      strip_tiles<T, R, V / 2>(x, w + v * n * kFloats, width, vectors - v, begin, end, sum + v * kFloats);
    }
  }
}

// sum[r][kStrip] + the products of R rows x[r] with `outputs` of a strip of `width`.
template <typename T, int R>
inline void add_strip(const T* const* x, const T* w, int64_t width, int64_t outputs, int64_t inputs, float* sum) {
  const int64_t vectors = (outputs + kFloats - 1) / kFloats;
  const int64_t block = vectors <= tile_vectors(R) ? std::max<int64_t>(inputs, 1) : kInputBlock;
  for (int64_t begin = 0; begin < inputs; begin += block) {
    strip_tiles<T, R>(x, w, width, vectors, begin, std::min(inputs, begin + block), sum);
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

// sum[R][kStrip] = R rows x[r] times the `outputs` of w from `first`, a multiple of kPart, on, all of one strip.
template <int R, typename T>
inline void multiply_tile(const T* const* x, Packed<T> w, int64_t first, int64_t outputs, float* sum) {
  const int64_t width = strip_width(w.outputs), inside = first % kStrip;
  const T* strip = w.weights + first / kStrip * (Packed<T>::size(kStrip, w.inputs)) + inside * Packs<T>::kTogether;
  std::fill(sum, sum + R * kStrip, 0.0f);
  add_strip<T, R>(x, strip, width, outputs, w.inputs, sum);
}

// y[r * stride + o] of `rows` rows x[r] and the `outputs` o of w from `first`, a multiple of kPart, on, all of one strip.
template <typename T>
void multiply(const T* const* x, int64_t rows, Packed<T> w, int64_t first, int64_t outputs, float* y, int64_t stride) {
  for_tiles<T>(rows, [&](auto tile_rows, int64_t r) {
    alignas(64) float sum[tile_rows * kStrip];
    multiply_tile<tile_rows>(x + r, w, first, outputs, sum);
    for (int i = 0; i < tile_rows; i++) std::memcpy(y + (r + i) * stride, sum + i * kStrip, outputs * sizeof(float));
  });
}

// sum[r][kStrip] += the products of `rows` rows x[r] with one strip.
template <typename T>
void add_multiplied(const T* const* x, int64_t rows, const T* strip, int64_t inputs, float* sum) {
  for_tiles<T>(rows, [&](auto tile_rows, int64_t r) {
    add_strip<T, tile_rows>(x + r, strip, kStrip, kStrip, inputs, sum + r * kStrip);
  });
}

}  // namespace moejax
