// What is done to each row on its own: RMS norm, routing, rotary embeddings on the way into the cache.
#pragma once

#include <vector>

#include "elementwise.h"
#include "parallel.h"

namespace moejax {

constexpr int64_t kRowsPerTask = 16;

// Calls run(row) for all rows, whose work is `bytes`.
template <typename Pool, typename Run>
void for_rows(Pool& pool, int64_t rows, int64_t bytes, Run run) {
  auto some = [rows, run](size_t, int64_t task) {
    for (int64_t r = task * kRowsPerTask; r < std::min(rows, (task + 1) * kRowsPerTask); r++) run(r);
  };
  in_parallel<1>(pool, threads_for(pool, bytes), {divide_up(rows, kRowsPerTask)}, some);
}

// The sum of x[i]^2.
template <typename T>
inline float sum_of_squares(const T* x, int64_t count) {
  Floats sum = zeros();
  int64_t i = 0;
  for (; i + kFloats <= count; i += kFloats) sum = multiply_add(widen(x + i), widen(x + i), sum);
  const Floats rest = widen_some(x + i, count - i);
  sum = multiply_add(rest, rest, sum);
  return sum_of(sum);
}

// y = x / rms(x) * scale, x and y [rows, D].
template <typename T, typename Pool>
void rms_norm(Pool& pool, const T* x, const T* scale, int64_t rows, int64_t depth, float eps, T* y) {
  for_rows(pool, rows, rows * depth * static_cast<int64_t>(sizeof(T)), [=](int64_t r) {
    const T* row = x + r * depth;
    const float inverse = 1.0f / std::sqrt(sum_of_squares(row, depth) / static_cast<float>(depth) + eps);
    for (int64_t d = 0; d < depth; d++) narrow(widen_one(row[d]) * inverse * widen_one(scale[d]), y + r * depth + d);
  });
}

// The best `chosen` of E probabilities for each token, ties to the lower id, and their share of their sum. A token that
// is not valid gets id E and weight 0.
inline void route(const float* logits, const bool* valid, int64_t tokens, int64_t experts, int64_t chosen,
                  bool renormalise, float scale, int32_t* ids, float* weights) {
  std::vector<float> probability(experts);
  std::vector<bool> taken(experts);
  for (int64_t t = 0; t < tokens; t++, logits += experts, ids += chosen, weights += chosen) {
    if (!valid[t]) {
      std::fill(ids, ids + chosen, static_cast<int32_t>(experts));
      std::fill(weights, weights + chosen, 0.0f);
      continue;
    }
    float peak = logits[0], all = 0.0f, best = 0.0f;
    for (int64_t e = 1; e < experts; e++) peak = logits[e] > peak ? logits[e] : peak;
    for (int64_t e = 0; e < experts; e++) all += probability[e] = exp_negative(logits[e] - peak);
    for (int64_t e = 0; e < experts; e++) probability[e] /= all;
    taken.assign(experts, false);
    for (int64_t a = 0; a < chosen; a++) {
      int64_t next = 0;
      while (taken[next]) next++;
      for (int64_t e = next + 1; e < experts; e++) next = !taken[e] && probability[e] > probability[next] ? e : next;
      taken[next] = true;
      ids[a] = static_cast<int32_t>(next);
      best += weights[a] = probability[next];
    }
    for (int64_t a = 0; a < chosen; a++) weights[a] = (renormalise ? weights[a] / best : weights[a]) * scale;
  }
}

// Queries [B, T, N, H], keys and values [B, T, K, H] as they were projected; cosines and sines [B, T, H / 2]. Rotated
// queries go to `rotated` [B, N, T, H], rotated keys and the values into the slots of the caches [B, K, S, H] from
// starts[b] on, or as far before as T slots need.
template <typename T>
struct RotateCall {
  int64_t batch, queries, heads, kv_heads, slots, width;
  const float *q, *k, *v, *cos, *sin;
  const int32_t* starts;
  T *rotated, *k_cache, *v_cache;
};

// One head: the pairs (i, i + H/2).
template <typename T>
inline void rotate(const float* x, const float* cos, const float* sin, int64_t half, T* y) {
  for (int64_t i = 0; i < half; i++) narrow(x[i] * cos[i] - x[half + i] * sin[i], y + i);
  for (int64_t i = 0; i < half; i++) narrow(x[half + i] * cos[i] + x[i] * sin[i], y + half + i);
}

template <typename T, typename Pool>
void rotate_into_cache(Pool& pool, const RotateCall<T>& call) {
  const int64_t t_count = call.queries, h = call.width, rows = call.batch * t_count;
  const int64_t bytes = rows * (call.heads + 2 * call.kv_heads) * h * static_cast<int64_t>(sizeof(float));
  for_rows(pool, rows, bytes, [=](int64_t row) {
    const int64_t b = row / t_count, t = row % t_count;
    const int64_t slot = std::clamp<int64_t>(call.starts[b], 0, call.slots - t_count) + t;
    const float *cos = call.cos + row * (h / 2), *sin = call.sin + row * (h / 2);
    for (int64_t n = 0; n < call.heads; n++) {
      rotate(call.q + (row * call.heads + n) * h, cos, sin, h / 2, call.rotated + ((b * call.heads + n) * t_count + t) * h);
    }
    for (int64_t n = 0; n < call.kv_heads; n++) {
      const int64_t from = (row * call.kv_heads + n) * h, to = ((b * call.kv_heads + n) * call.slots + slot) * h;
      rotate(call.k + from, cos, sin, h / 2, call.k_cache + to);
      for (int64_t i = 0; i < h; i++) narrow(call.v[from + i], call.v_cache + to + i);
    }
  });
}

}  // namespace moejax
