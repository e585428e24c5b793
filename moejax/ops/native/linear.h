// The same rows times several weights.
#pragma once

#include <numeric>
#include <vector>

#include "parallel.h"
#include "product.h"

namespace moejax {

// One of the weights [outputs, depth] and where its products go, [rows, outputs].
template <typename T>
struct LinearPart {
  const T* w;
  int64_t outputs;
  float* y;
};

// y = x w^T for each part, x [rows, depth]. Each weight is read once.
template <typename T, typename Pool>
void linear(Pool& pool, const T* x, int64_t rows, int64_t depth, const std::vector<LinearPart<T>>& parts) {
  std::vector<const T*> row(rows);
  for (int64_t r = 0; r < rows; r++) row[r] = x + r * depth;
  struct Task {
    const LinearPart<T>* part;
    int64_t first, outputs;
  };
  int64_t all = 0;
  for (const auto& part : parts) all += part.outputs;
  int64_t threads = threads_for(pool, all * depth * static_cast<int64_t>(sizeof(T)) * divide_up(rows, 8));
  int64_t width = outputs_per_task(all, threads);
  std::vector<Task> tasks;
  for (const auto& part : parts) {
    for (int64_t o = 0; o < part.outputs; o += width) tasks.push_back({&part, o, std::min(width, part.outputs - o)});
  }
  auto run = [&](size_t, int64_t index) {
    const Task& task = tasks[index];
    const LinearPart<T>& part = *task.part;
    product(row.data(), rows, part.w + task.first * depth, task.outputs, depth, part.y + task.first, part.outputs);
  };
  in_parallel<1>(pool, threads, {static_cast<int64_t>(tasks.size())}, run);
}

}  // namespace moejax
