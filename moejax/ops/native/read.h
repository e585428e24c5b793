// Reading memory and nothing else, by all threads: what a decode step, which reads its weights, is measured against.
#pragma once

#include <algorithm>

#include "parallel.h"
#include "vector.h"

namespace moejax {

constexpr int64_t kReadBlock = 1 << 16;  // numbers that are added up to one sum

// sums[i] = the sum of the numbers of block i, [count / kReadBlock] rounded up.
template <typename Pool>
void read_memory(Pool& pool, const float* numbers, int64_t count, float* sums) {
  auto run = [=](size_t, int64_t block) {
    constexpr int kStreams = 8;  // sums on their way, so that none waits for the one before
    const float* p = numbers + block * kReadBlock;
    const int64_t here = std::min(kReadBlock, count - block * kReadBlock);
    Floats sum[kStreams];
    for (int s = 0; s < kStreams; s++) sum[s] = zeros();
    int64_t i = 0;
    for (; i + kStreams * kFloats <= here; i += kStreams * kFloats) {
      for (int s = 0; s < kStreams; s++) sum[s] = multiply_add(load(p + i + s * kFloats), broadcast(1.0f), sum[s]);
    }
    float total = 0.0f;
    for (; i < here; i++) total += p[i];
    for (int s = 0; s < kStreams; s++) total += sum_of(sum[s]);
    sums[block] = total;
  };
  in_parallel<1>(pool, threads_for(pool, count * static_cast<int64_t>(sizeof(float))), {divide_up(count, kReadBlock)}, run);
}

}  // namespace moejax
