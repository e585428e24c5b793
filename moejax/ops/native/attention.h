// Softmax attention of queries over the cached keys and values that each of them may see.
#pragma once

#include <limits>
#include <vector>

#include "elementwise.h"
#include "parallel.h"

namespace moejax {

// q and y [B, K, G, T, H], k and v [B, K, S, H]: G query heads for each key/value head. Query t of row b stands at
// position starts[b] + t and sees the positions up to there, the last `window` of them if that is not 0. Scores are the
// products times `scale`, then soft_cap tanh(score / soft_cap) if that is not 0. sinks: null, or a score [K, G] of each
// head that counts in its softmax and has no value.
template <typename T>
struct AttentionCall {
  int64_t batch, kv_heads, group, queries, positions, width, window;
  float scale, soft_cap;
  const T *q, *k, *v;
  const int32_t* starts;
  const float* sinks;
  float* y;
};

// Scores of one call after their products, in units of 1 / scale, which the exponentials multiply by.
struct Scores {
  float scale, soft_cap;

  // What the softmax of a head starts from: the highest score so far, and the sum against it.
  float peak(const float* sinks, int64_t head) const {
    return sinks ? sinks[head] / scale : -std::numeric_limits<float>::infinity();
  }
  static float total(const float* sinks) { return sinks ? 1.0f : 0.0f; }

  // Products become capped scores.
  void cap(float* score, int64_t count) const {
    if (soft_cap == 0.0f) return;
    const float in = scale / soft_cap, out = soft_cap / scale;
    for (int64_t i = 0; i < count; i++) score[i] = out * tanh_of(in * score[i]);
  }
};

// The positions `begin` to `end` - 1 are what a query sees.
struct Seen {
  int64_t begin, end;
};

// What query t sees, of a row and key/value head (b K + the head).
template <typename T>
inline Seen seen_by(const AttentionCall<T>& call, int64_t head, int64_t t) {
  const int64_t position = call.starts[head / call.kv_heads] + t;
  const int64_t last = std::clamp<int64_t>(position, 0, call.positions - 1);
  return {call.window ? std::clamp<int64_t>(position - call.window + 1, 0, last) : 0, last + 1};
}

constexpr int kHeads = kRegisters == 32 ? 4 : 2;  // query heads that share a pass over keys or values
constexpr int64_t kValueBlocks = kRegisters == 32 ? 4 : 2;  // vectors of a value that a pass sums

// score[r][i] of R queries and the `Keys` keys from i on. A score has the same bits whatever is computed beside it.
template <typename T, int R, int Keys>
inline void score_some(const T* const* q, const T* k, int64_t i, int64_t width, float* const* score) {
  using P = Packs<T>;
  Floats sum[R][4];
  for (int r = 0; r < R; r++) {
    for (int j = 0; j < 4; j++) sum[r][j] = zeros();
  }
  const int64_t rest = width % P::kWidth, whole = width - rest;
  for (int64_t h = 0; h < whole; h += P::kWidth) {
    typename P::Pack row[R];
    for (int r = 0; r < R; r++) row[r] = P::read(q[r] + h);
    for (int j = 0; j < Keys; j++) {
      const typename P::Pack key = P::read(k + (i + j) * width + h);
      for (int r = 0; r < R; r++) sum[r][j] = P::dot(sum[r][j], row[r], key);
    }
  }
  if (rest) {
    for (int j = 0; j < Keys; j++) {
      const typename P::Pack key = P::read_some(k + (i + j) * width + whole, rest);
      for (int r = 0; r < R; r++) sum[r][j] = P::dot(sum[r][j], P::read_some(q[r] + whole, rest), key);
    }
  }
  for (int r = 0; r < R; r++) {
    alignas(16) float all[4];
    store_sums(all, sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
    std::memcpy(score[r] + i, all, Keys * sizeof(float));
  }
}

// score[r][i] of R queries and the keys `begin` to `end` - 1, which are read once.
template <typename T, int R>
inline void score_keys(const T* const* q, const T* k, Seen seen, int64_t width, float* const* score) {
  int64_t i = seen.begin;
  for (; i + 4 <= seen.end; i += 4) score_some<T, R, 4>(q, k, i, width, score);
  for (; i < seen.end; i++) score_some<T, R, 1>(q, k, i, width, score);
}

// score[i] becomes e^(scale (score[i] - peak)), for `count` scores and zeros up to the next full vector; their sum, and
// that of a sink, if there is one.
inline float exponentials(float* score, int64_t count, const Scores& scores, const float* sinks, int64_t head) {
  const int64_t padded = divide_up(count, kFloats) * kFloats;
  std::fill(score + count, score + padded, -std::numeric_limits<float>::infinity());
  scores.cap(score, count);
  const float sink = scores.peak(sinks, head);
  Floats peaks = broadcast(sink);
  for (int64_t i = 0; i < padded; i += kFloats) peaks = maximum(load(score + i), peaks);
  const float peak = highest_of(peaks);
  for (int64_t i = 0; i < padded; i++) score[i] = exp_negative(scores.scale * (score[i] - peak));
  Floats total = zeros();
  for (int64_t i = 0; i < padded; i += kFloats) total = multiply_add(load(score + i), broadcast(1.0f), total);
  return sum_of(total) + (sinks ? exp_negative(scores.scale * (sink - peak)) : 0.0f);
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

// One query for each of up to R heads that share the keys k and values v.
template <typename T, int R = kHeads>
inline void attend_heads(const AttentionCall<T>& call, int64_t heads, const T* const* q, const T* k, const T* v, Seen seen,
                         const float* sinks, std::vector<float>& scores, float* const* y) {
  if constexpr (R > 0) {
    if (heads != R) return attend_heads<T, R - 1>(call, heads, q, k, v, seen, sinks, scores, y);
    const int64_t width = call.width;
    const int64_t count = seen.end - seen.begin, stride = count + 2 * kFloats;  // room for zeros after the last score
    scores.resize(R * stride);
    float* score[R];
    float total[R];
    for (int r = 0; r < R; r++) score[r] = scores.data() + r * stride - seen.begin;  // of position i at [i]
    score_keys<T, R>(q, k, seen, width, score);
    for (int r = 0; r < R; r++) {
      total[r] = exponentials(score[r] + seen.begin, count, {call.scale, call.soft_cap}, sinks, r);
      std::fill(y[r], y[r] + width, 0.0f);
    }
    add_values<T, R>(score, v, seen.begin, seen.end, width, y);
    for (int r = 0; r < R; r++) {
      for (int64_t h = 0; h < width; h++) y[r][h] /= total[r];
    }
  }
}

// The query of row b and key/value head `head` (b K + the head), for all of its G query heads: a decode step, which has
// too few queries to be worth packing keys.
template <typename T>
void attend_one(const AttentionCall<T>& call, int64_t head) {
  thread_local std::vector<float> scores;
  const int64_t cached = head * call.positions * call.width;
  for (int64_t g = 0; g < call.group; g += kHeads) {
    const int64_t some = std::min<int64_t>(kHeads, call.group - g);
    const T* q[kHeads];
    float* y[kHeads];
    for (int64_t r = 0; r < some; r++) {
      q[r] = call.q + (head * call.group + g + r) * call.width;
      y[r] = call.y + (head * call.group + g + r) * call.width;
    }
    const float* sinks = call.sinks ? call.sinks + head % call.kv_heads * call.group + g : nullptr;
    attend_heads<T>(call, some, q, call.k + cached, call.v + cached, seen_by(call, head, 0), sinks, scores, y);
  }
}

}  // namespace moejax
