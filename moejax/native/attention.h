// Softmax attention of queries over the cached keys and values that each of them may see.
#pragma once

#include <vector>

#include "elementwise.h"
#include "parallel.h"
#include "product.h"

namespace moejax {

// q and y [B, K, G, T, H], k and v [B, K, S, H]: G query heads for each key/value head. Query t of row b stands at
// position starts[b] + t and sees the slots up to there, the last `window` of them if that is not 0.
template <typename T>
struct AttentionCall {
  int64_t batch, kv_heads, group, queries, slots, width, window;
  const T *q, *k, *v;
  const int32_t* starts;
  float* y;
};

constexpr int64_t kQueriesPerTask = 16;

// score[i] becomes e^(scale (score[i] - peak)), for `count` scores and zeros up to the next full vector; their sum.
inline float exponentials(float* score, int64_t count, float scale) {
  float peak = score[0];
  for (int64_t i = 1; i < count; i++) peak = score[i] > peak ? score[i] : peak;
  for (int64_t i = 0; i < count; i++) score[i] = exp_negative(scale * (score[i] - peak));
  std::fill(score + count, score + divide_up(count, kFloats) * kFloats, 0.0f);
  Floats total = zeros();
  for (int64_t i = 0; i < count; i += kFloats) total = multiply_add(load(score + i), broadcast(1.0f), total);
  return _mm_cvtss_f32(sums(total, zeros(), zeros(), zeros()));
}

// y[r][h] = sum over i of weight[r * stride + i] v[i][h] for R rows, divided by total[r].
template <typename T, int R>
inline void weighted_values(const float* weight, int64_t stride, const T* v, int64_t count, int64_t width,
                            const float* total, float* const* y) {
  int64_t h = 0;
  for (; h + kFloats <= width; h += kFloats) {
    Floats sum[R];
    for (int r = 0; r < R; r++) sum[r] = zeros();
    for (int64_t i = 0; i < count; i++) {
      Floats value = widen(v + i * width + h);
      for (int r = 0; r < R; r++) sum[r] = multiply_add(broadcast(weight[r * stride + i]), value, sum[r]);
    }
    for (int r = 0; r < R; r++) {
      float all[kFloats];
      store(all, sum[r]);
      for (int j = 0; j < kFloats; j++) y[r][h + j] = all[j] / total[r];
    }
  }
  for (; h < width; h++) {
    for (int r = 0; r < R; r++) {
      float sum = 0.0f;
      for (int64_t i = 0; i < count; i++) sum = std::fma(weight[r * stride + i], widen_one(v[i * width + h]), sum);
      y[r][h] = sum / total[r];
    }
  }
}

// Query t of row b and key/value head `head`, all of its G heads.
template <typename T>
void attend_query(const AttentionCall<T>& call, int64_t head, int64_t t, float scale, std::vector<float>& scores) {
  const int64_t position = call.starts[head / call.kv_heads] + t;
  const int64_t last = std::clamp<int64_t>(position, 0, call.slots - 1);
  const int64_t first = call.window ? std::clamp<int64_t>(position - call.window + 1, 0, last) : 0;
  const int64_t count = last - first + 1, stride = divide_up(count, kFloats) * kFloats;
  const T* k = call.k + (head * call.slots + first) * call.width;
  const T* v = call.v + (head * call.slots + first) * call.width;
  constexpr int kRows = 4;
  scores.resize(kRows * stride);
  for (int64_t g = 0; g < call.group; g += kRows) {
    const int64_t rows = std::min<int64_t>(kRows, call.group - g);
    const T* q[kRows];
    float* y[kRows];
    float total[kRows];
    for (int64_t r = 0; r < rows; r++) {
      const int64_t query = ((head * call.group + g + r) * call.queries + t) * call.width;
      q[r] = call.q + query;
      y[r] = call.y + query;
    }
    product(q, rows, k, count, call.width, scores.data(), stride);
    for (int64_t r = 0; r < rows; r++) total[r] = exponentials(scores.data() + r * stride, count, scale);
    if (rows == kRows) {
      weighted_values<T, kRows>(scores.data(), stride, v, count, call.width, total, y);
    } else {
      for (int64_t r = 0; r < rows; r++) {
        weighted_values<T, 1>(scores.data() + r * stride, stride, v, count, call.width, total + r, y + r);
      }
    }
  }
}

template <typename T>
void attend(xla::ffi::ThreadPool& pool, const AttentionCall<T>& call) {
  const int64_t heads = call.batch * call.kv_heads, blocks = divide_up(call.queries, kQueriesPerTask);
  const int64_t bytes = 2 * heads * call.slots * call.width * static_cast<int64_t>(sizeof(T)) * call.queries;
  const float scale = 1.0f / std::sqrt(static_cast<float>(call.width));
  auto run = [&](size_t, int64_t task) {
    thread_local std::vector<float> scores;
    const int64_t first = task % blocks * kQueriesPerTask;
    for (int64_t t = first; t < std::min(call.queries, first + kQueriesPerTask); t++) {
      attend_query(call, task / blocks, t, scale, scores);
    }
  };
  in_parallel<1>(pool, threads_for(pool, bytes), {heads * blocks}, run);
}

}  // namespace moejax
