// The same rows times several weights.
#pragma once

#include <vector>

#include "parallel.h"
#include "strips.h"

namespace moejax {

// One of the weights and where its products go, [rows, outputs].
template <typename T>
struct LinearPart {
  Packed<T> w;
  float* y;
};

// y = x w^T for each part, x [rows, depth]. Each weight is read once.
template <typename T, typename Pool>
void linear(Pool& pool, const T* x, int64_t rows, int64_t depth, const std::vector<LinearPart<T>>& parts) {
  std::vector<const T*> row(rows);
  for (int64_t r = 0; r < rows; r++) row[r] = x + r * depth;
  struct Task {
    const LinearPart<T>* part;
    int64_t first;
  };
  int64_t all = 0;
  for (const auto& part : parts) all += part.w.outputs;
  const int64_t threads = threads_for(pool, all * depth * static_cast<int64_t>(sizeof(T)) * divide_up(rows, 8));
  const int64_t width = outputs_per_task(all, threads);
  std::vector<Task> tasks;
  for (const auto& part : parts) {
    for (int64_t first = 0; first < part.w.outputs; first += width) tasks.push_back({&part, first});
  }
  auto run = [&](size_t, int64_t index) {
    const auto [part, first] = tasks[index];
    const int64_t outputs = part->w.outputs;
    multiply(row.data(), rows, part->w, first, std::min(width, outputs - first), part->y + first, outputs);
  };
  in_parallel<1>(pool, threads, {static_cast<int64_t>(tasks.size())}, run);
}

}  // namespace moejax
