// Attention of prompts: blocks of queries against blocks of keys, both products as those of packed weights.
//
// Blocks of keys begin at multiples of kKeys whatever the prompt was cut into, and a block that a query does not see
// changes none of its numbers, so a query's result has the same bits however many queries are computed beside it.
#pragma once

#include <limits>
#include <type_traits>
#include <vector>

#include "attention.h"
#include "elementwise.h"
#include "strips.h"

namespace moejax {

constexpr int64_t kKeys = kStrip;   // of a block: the outputs of its scores
constexpr int64_t kBlockRows = 256;  // queries of a task, all heads of a key/value head counted: they share packed keys

// What is multiplied: bfloat16 where the CPU multiplies it, else float32. Then softmax weights are rounded to bfloat16, and
// their sum is that of the rounded ones.
template <typename T>
using Multiplied = std::conditional_t<std::is_same_v<T, BFloat16> && Packs<BFloat16>::kRegisters == 1, BFloat16, float>;

inline void convert(const BFloat16* x, int64_t count, BFloat16* y) { std::memcpy(y, x, count * sizeof *y); }
template <typename T>
inline void convert(const T* x, int64_t count, float* y) {
  for (int64_t i = 0; i < count; i++) y[i] = widen_one(x[i]);
}

// Keys [count, width] as packed weights of kKeys outputs: their scores. What is missing of kKeys is 0.
template <typename T, typename M>
inline void pack_keys(const T* k, int64_t count, int64_t width, std::vector<M>& rows, M* packed) {
  constexpr int64_t n = Packs<M>::kTogether;
  const int64_t whole = divide_up(width, n) * n;
  rows.assign(kKeys * whole, M{});
  for (int64_t key = 0; key < count; key++) convert(k + key * width, width, rows.data() + key * whole);
  // In squares, so that what is read and what is written both stay in the first-level cache.
  for (int64_t first = 0; first < kKeys; first += kFloats) {
    for (int64_t h = 0; h < whole; h += n) {
      M* to = packed + h * kKeys + first * n;
      for (int64_t key = 0; key < kFloats; key++) {
        std::memcpy(to + key * n, rows.data() + (first + key) * whole + h, n * sizeof(M));
      }
    }
  }
}

// Values [count, width] as packed weights of `width` outputs: what their weights make of them.
template <typename T, typename M>
inline void pack_values(const T* v, int64_t count, int64_t width, M* packed) {
  constexpr int64_t n = Packs<M>::kTogether;
  const int64_t size = Packed<M>::size(kStrip, kKeys);
  std::fill(packed, packed + strips_of(width) * size, M{});
  M row[kStrip];
  for (int64_t first = 0; first < width; first += kStrip, packed += size) {
    const int64_t some = std::min(kStrip, width - first);
    for (int64_t key = 0; key < count; key++) {
      convert(v + key * width + first, some, row);
      M* to = packed + key / n * n * kStrip + key % n;
      for (int64_t h = 0; h < some; h++) to[h * n] = row[h];
    }
  }
}

// Weights of softmax: to float32, or as near as bfloat16 can tell, which a shorter series is.
inline void exponentials_of(const float* a, float* weight) {
  for (int64_t i = 0; i < kKeys; i++) weight[i] = exp_negative(a[i]);
}
inline void exponentials_of(const float* a, BFloat16* weight) {
  alignas(64) float exact[kKeys];
  for (int64_t i = 0; i < kKeys; i++) exact[i] = exp_negative_to_bfloat16(a[i]);
  narrow_all(exact, kKeys, weight);
}

// Scores of one query and a block become weights e^(scale (score - peak)) against the highest so far, 0 for keys before
// `begin` and from `end` on. Returns what earlier sums have to be multiplied by.
template <typename M>
inline float weigh(const float* score, int64_t begin, int64_t end, float scale, float* peak, float* total, M* weight) {
  if (begin >= kKeys || end <= 0) {
    std::fill(weight, weight + kKeys, M{});
    return 1.0f;
  }
  alignas(64) float seen[kKeys];
  if (begin > 0 || end < kKeys) {
    for (int64_t i = 0; i < kKeys; i++) {
      seen[i] = i >= begin && i < end ? score[i] : -std::numeric_limits<float>::infinity();
    }
    score = seen;
  }
  Floats best = broadcast(*peak);
  for (int64_t i = 0; i < kKeys; i += kFloats) best = maximum(load(score + i), best);
  const float highest = highest_of(best);
  // Where every score so far is -infinity, against 0: their weights are 0 then, and that of a NaN stays one.
  const float against = highest == -std::numeric_limits<float>::infinity() ? 0.0f : highest;
  for (int64_t i = 0; i < kKeys; i++) seen[i] = scale * (score[i] - against);
  exponentials_of(seen, weight);
  Floats sum = zeros();
  for (int64_t i = 0; i < kKeys; i += kFloats) sum = multiply_add(widen(weight + i), broadcast(1.0f), sum);
  const float factor = *peak == highest ? 1.0f : exp_negative(scale * (*peak - highest));
  *peak = highest;
  *total = *total * factor + sum_of(sum);
  return factor;
}

// Whether all of `count` numbers are finite.
template <typename T>
inline bool all_finite(const T* x, int64_t count) {
  bool finite = true;
  for (int64_t i = 0; i < count; i++) finite &= widen_one(x[i]) - widen_one(x[i]) == 0.0f;
  return finite;
}

// Buffers of a thread, which its tasks use one after the other.
template <typename M>
struct BlockBuffers {
  std::vector<M> queries, key_rows, keys, values, weights;
  std::vector<float> scores, sums;
};

// `count` queries from t on, of row b and key/value head `head` (b K + the head), for all of its G query heads.
template <typename T>
void attend_block(const AttentionCall<T>& call, int64_t head, int64_t t, int64_t count) {
  using M = Multiplied<T>;
  thread_local BlockBuffers<M> buffers;
  const int64_t rows = count * call.group, width = call.width, strips = strips_of(width);
  const T* k = call.k + head * call.positions * width;
  const T* v = call.v + head * call.positions * width;
  buffers.queries.resize(rows * width);
  buffers.keys.resize(Packed<M>::size(kKeys, width));
  buffers.values.resize(strips * Packed<M>::size(kStrip, kKeys));
  buffers.weights.resize(rows * kKeys);
  buffers.scores.resize(rows * kKeys);
  buffers.sums.assign(strips * rows * kStrip, 0.0f);
  std::vector<const M*> query(rows), weight(rows);
  const Scores scores{call.scale, call.soft_cap};
  const float* sinks = call.sinks ? call.sinks + head % call.kv_heads * call.group : nullptr;
  std::vector<float> peak(rows), total(rows, Scores::total(sinks));
  std::vector<Seen> seen(rows);
  for (int64_t r = 0; r < rows; r++) {
    const int64_t place = ((head * call.group + r % call.group) * call.queries + t + r / call.group) * width;
    convert(call.q + place, width, buffers.queries.data() + r * width);
    query[r] = buffers.queries.data() + r * width;
    weight[r] = buffers.weights.data() + r * kKeys;
    seen[r] = seen_by(call, head, t + r / call.group);
    peak[r] = scores.peak(sinks, r % call.group);
  }
  for (int64_t first = seen[0].begin / kKeys * kKeys; first < seen[rows - 1].end; first += kKeys) {
    const int64_t there = std::min(kKeys, call.positions - first), last = std::min(there, seen[rows - 1].end - first);
    pack_keys(k + first * width, last, width, buffers.key_rows, buffers.keys.data());
    pack_values(v + first * width, last, width, buffers.values.data());
    multiply(query.data(), rows, Packed<M>{buffers.keys.data(), kKeys, width}, 0, kKeys, buffers.scores.data(), kKeys);
    scores.cap(buffers.scores.data(), rows * kKeys);
    for (int64_t r = 0; r < rows; r++) {
      const float factor = weigh(buffers.scores.data() + r * kKeys, seen[r].begin - first, seen[r].end - first, call.scale, &peak[r],
                                 &total[r], buffers.weights.data() + r * kKeys);
      if (factor == 1.0f) continue;
      for (int64_t s = 0; s < strips; s++) {
        float* sum = buffers.sums.data() + (s * rows + r) * kStrip;
        for (int64_t h = 0; h < kStrip; h++) sum[h] *= factor;
      }
    }
    // A weight of 0 keeps out what a query does not see, but no infinity and no NaN: there each adds what it sees alone.
    const bool all_seen = seen[0].end - first >= last && seen[rows - 1].begin <= first;
    const bool together = all_seen || all_finite(v + first * width, last * width);
    for (int64_t s = 0; s < strips; s++) {
      const M* values = buffers.values.data() + s * Packed<M>::size(kStrip, kKeys);
      float* sums = buffers.sums.data() + s * rows * kStrip;
      if (together) {
        add_multiplied(weight.data(), rows, values, kKeys, sums);
        continue;
      }
      for (int64_t r = 0; r < rows; r++) {
        const int64_t begin = std::max<int64_t>(0, seen[r].begin - first), end = std::min(last, seen[r].end - first);
        for (int64_t key = begin; key < end; key++) {
          for (int64_t h = 0; h < std::min(kStrip, width - s * kStrip); h++) {
            sums[r * kStrip + h] += widen_one(weight[r][key]) * widen_one(v[(first + key) * width + s * kStrip + h]);
          }
        }
      }
    }
  }
  for (int64_t r = 0; r < rows; r++) {
    float* y = call.y + ((head * call.group + r % call.group) * call.queries + t + r / call.group) * width;
    for (int64_t h = 0; h < width; h++) y[h] = buffers.sums[(h / kStrip * rows + r) * kStrip + h % kStrip] / total[r];
  }
}

// One query of a sequence on its own, several by blocks: which it is decides a result's last bits, and nothing else does.
template <typename T, typename Pool>
void attend(Pool& pool, const AttentionCall<T>& call) {
  const bool one = call.queries == 1;
  const int64_t each = one ? 1 : std::max<int64_t>(1, kBlockRows / call.group), blocks = divide_up(call.queries, each);
  const int64_t heads = call.batch * call.kv_heads;
  const int64_t bytes = 2 * heads * call.positions * call.width * static_cast<int64_t>(sizeof(T)) * call.queries;
  auto run = [&](size_t, int64_t task) {
    if (one) return attend_one(call, task);
    const int64_t first = task % blocks * each;
    attend_block(call, task / blocks, first, std::min(each, call.queries - first));
  };
  in_parallel<1>(pool, threads_for(pool, bytes), {heads * blocks}, run);
}

}  // namespace moejax
