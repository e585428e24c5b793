// Softmax attention of queries over the cached keys and values that each of them may see.
#pragma once

#include <limits>
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
constexpr int64_t kPanel = 12;    // query heads whose scores are computed together: tiles of products are full
constexpr int64_t kValueRows = 4;  // query heads that share a pass over the values
constexpr int64_t kValueBlocks = kFloats == 16 ? 4 : 2;  // vectors of a value that a pass sums

// One query of one head: the slots `begin` to `end` - 1 are what it sees.
template <typename T>
struct QueryRow {
  const T* q;
  float* y;
  int64_t begin, end;
};

// score[i] becomes e^(scale (score[i] - peak)), for `count` scores and zeros up to the next full vector; their sum.
inline float exponentials(float* score, int64_t count, float scale) {
  const int64_t padded = divide_up(count, kFloats) * kFloats;
  std::fill(score + count, score + padded, -std::numeric_limits<float>::infinity());
  Floats peaks = load(score);
  for (int64_t i = kFloats; i < padded; i += kFloats) peaks = maximum(load(score + i), peaks);
  float lanes[kFloats];
  store(lanes, peaks);
  float peak = lanes[0];
  for (int i = 1; i < kFloats; i++) peak = lanes[i] > peak ? lanes[i] : peak;
  for (int64_t i = 0; i < padded; i++) score[i] = exp_negative(scale * (score[i] - peak));
  Floats total = zeros();
  for (int64_t i = 0; i < padded; i += kFloats) total = multiply_add(load(score + i), broadcast(1.0f), total);
  return _mm_cvtss_f32(sums(total, zeros(), zeros(), zeros()));
}

// y[r][h] += sum over i from `begin` to `end` - 1 of weight[r][i] v[i][h], in this order, for R rows.
template <typename T, int R, int Blocks>
inline void add_values(const float* const* weight, const T* v, int64_t begin, int64_t end, int64_t width, int64_t h,
                       float* const* y) {
  Floats sum[R][Blocks];
  for (int r = 0; r < R; r++) {
    for (int b = 0; b < Blocks; b++) sum[r][b] = load(y[r] + h + b * kFloats);
  }
  for (int64_t i = begin; i < end; i++) {
    Floats value[Blocks];
    for (int b = 0; b < Blocks; b++) value[b] = widen(v + i * width + h + b * kFloats);
    for (int r = 0; r < R; r++) {
      Floats factor = broadcast(weight[r][i]);
      for (int b = 0; b < Blocks; b++) sum[r][b] = multiply_add(factor, value[b], sum[r][b]);
    }
  }
  for (int r = 0; r < R; r++) {
    for (int b = 0; b < Blocks; b++) store(y[r] + h + b * kFloats, sum[r][b]);
  }
}

// The same for the elements from h on, fewer than a vector holds.
template <typename T, int R>
inline void add_last_values(const float* const* weight, const T* v, int64_t begin, int64_t end, int64_t width, int64_t h,
                            float* const* y) {
  const int64_t count = width - h;
  Floats sum[R];
  for (int r = 0; r < R; r++) sum[r] = widen_some(y[r] + h, count);
  for (int64_t i = begin; i < end; i++) {
    const Floats value = widen_some(v + i * width + h, count);
    for (int r = 0; r < R; r++) sum[r] = multiply_add(broadcast(weight[r][i]), value, sum[r]);
  }
  for (int r = 0; r < R; r++) store_some(y[r] + h, sum[r], count);
}

template <typename T, int R>
inline void add_values(const float* const* weight, const T* v, int64_t begin, int64_t end, int64_t width,
                       float* const* y) {
  if (begin >= end) return;
  int64_t h = 0;
  for (; h + kValueBlocks * kFloats <= width; h += kValueBlocks * kFloats) {
    add_values<T, R, kValueBlocks>(weight, v, begin, end, width, h, y);
  }
  for (; h + kFloats <= width; h += kFloats) add_values<T, R, 1>(weight, v, begin, end, width, h, y);
  if (h < width) add_last_values<T, R>(weight, v, begin, end, width, h, y);
}

// The weighted values of up to R rows: what all of them see together, before and after it each row alone.
template <typename T, int R = kValueRows>
inline void weigh_values(int64_t rows, const QueryRow<T>* row, const float* const* weight, const T* v, int64_t width) {
  if constexpr (R > 0) {
    if (rows != R) return weigh_values<T, R - 1>(rows, row, weight, v, width);
    float* y[R];
    for (int r = 0; r < R; r++) y[r] = row[r].y;
    const int64_t begin = row[R - 1].begin, end = std::max(begin, row[0].end);  // later queries begin and end later
    for (int r = 0; r < R; r++) add_values<T, 1>(weight + r, v, row[r].begin, std::min(begin, row[r].end), width, y + r);
    add_values<T, R>(weight, v, begin, std::min(end, row[0].end), width, y);
    for (int r = 0; r < R; r++) add_values<T, 1>(weight + r, v, end, row[r].end, width, y + r);
  }
}

// Up to kPanel queries of heads that share the keys k and values v.
template <typename T>
void attend_panel(const QueryRow<T>* row, int64_t rows, const T* k, const T* v, int64_t width, float scale,
                  std::vector<float>& scores) {
  const int64_t base = row[0].begin, slots = row[rows - 1].end - base;
  const int64_t stride = divide_up(slots, kFloats) * kFloats + kFloats;  // room for zeros after a row's last score
  scores.resize(kPanel * stride);
  const T* q[kPanel];
  const float* weight[kPanel];
  float total[kPanel];
  for (int64_t r = 0; r < rows; r++) q[r] = row[r].q;
  product(q, rows, k + base * width, slots, width, scores.data(), stride);
  for (int64_t r = 0; r < rows; r++) {
    float* first = scores.data() + r * stride + row[r].begin - base;
    total[r] = exponentials(first, row[r].end - row[r].begin, scale);
    weight[r] = scores.data() + r * stride - base;  // of slot i at [i]
    std::fill(row[r].y, row[r].y + width, 0.0f);
  }
  for (int64_t r = 0; r < rows; r += kValueRows) {
    weigh_values<T>(std::min(kValueRows, rows - r), row + r, weight + r, v, width);
  }
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t h = 0; h < width; h++) row[r].y[h] /= total[r];
  }
}

// `count` queries from t on, of row b and key/value head `head` (b K + the head), for all of its G query heads.
template <typename T>
void attend_queries(const AttentionCall<T>& call, int64_t head, int64_t t, int64_t count, float scale,
                    std::vector<float>& scores) {
  const int64_t rows = count * call.group, cached = head * call.slots * call.width;
  for (int64_t done = 0; done < rows; done += kPanel) {
    QueryRow<T> row[kPanel];
    const int64_t some = std::min(kPanel, rows - done);
    for (int64_t r = 0; r < some; r++) {
      const int64_t query = t + (done + r) / call.group, g = (done + r) % call.group;
      const int64_t place = ((head * call.group + g) * call.queries + query) * call.width;
      const int64_t position = call.starts[head / call.kv_heads] + query;
      const int64_t last = std::clamp<int64_t>(position, 0, call.slots - 1);
      const int64_t first = call.window ? std::clamp<int64_t>(position - call.window + 1, 0, last) : 0;
      row[r] = {call.q + place, call.y + place, first, last + 1};
    }
    attend_panel(row, some, call.k + cached, call.v + cached, call.width, scale, scores);
  }
}

template <typename T>
void attend(xla::ffi::ThreadPool& pool, const AttentionCall<T>& call) {
  const int64_t heads = call.batch * call.kv_heads, blocks = divide_up(call.queries, kQueriesPerTask);
  const int64_t bytes = 2 * heads * call.slots * call.width * static_cast<int64_t>(sizeof(T)) * call.queries;
  const float scale = 1.0f / std::sqrt(static_cast<float>(call.width));
  auto run = [&](size_t, int64_t task) {
    thread_local std::vector<float> scores;
    const int64_t first = task % blocks * kQueriesPerTask, count = std::min(kQueriesPerTask, call.queries - first);
    attend_queries(call, task / blocks, first, count, scale, scores);
  };
  in_parallel<1>(pool, threads_for(pool, bytes), {heads * blocks}, run);
}

}  // namespace moejax
