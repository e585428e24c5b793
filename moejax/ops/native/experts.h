// The chosen experts' feed-forward networks and the weighted sum of their results.
#pragma once

#include <vector>

#include "elementwise.h"
#include "parallel.h"
#include "strips.h"

namespace moejax {

// tokens T of D elements, each with `chosen` A of E experts: ids [T, A], E being none, and weights [T, A].
template <typename T>
struct ExpertsCall {
  int64_t tokens, depth, hidden_depth, chosen, experts;
  const T* x;
  const int32_t* ids;
  const float* weights;
  Packed<T> gate, up, down;  // of the first expert: [F, D], [F, D], [D, F]; the others come after it
  T* hidden;       // [R, F], workspace: rows sorted by expert, R = T A
  float* results;  // [R, D], workspace
  float* y;        // [T, D]
};

// Rows sorted by expert, in token order within one. Row t A + a is at places[t A + a], or nowhere (-1).
struct Sorted {
  std::vector<int64_t> places, tokens;  // tokens[place]
  std::vector<int64_t> used, starts;    // experts with rows, and where those of each begin; starts has one more
};

inline Sorted sort_rows(const int32_t* ids, int64_t tokens, int64_t chosen, int64_t experts) {
  std::vector<int64_t> counts(experts + 1), next(experts + 1);
  for (int64_t row = 0; row < tokens * chosen; row++) counts[ids[row]]++;
  Sorted sorted;
  int64_t place = 0;
  for (int64_t e = 0; e < experts; e++) {
    next[e] = place;
    if (counts[e]) {
      sorted.used.push_back(e);
      sorted.starts.push_back(place);
    }
    place += counts[e];
  }
  sorted.starts.push_back(place);
  sorted.places.assign(tokens * chosen, -1);
  sorted.tokens.resize(place);
  for (int64_t row = 0; row < tokens * chosen; row++) {
    if (ids[row] == experts) continue;
    sorted.places[row] = next[ids[row]]++;
    sorted.tokens[sorted.places[row]] = row / chosen;
  }
  return sorted;
}

// hidden [rows, F] at the `outputs` from `first` on, for the rows x[r] of one expert.
template <typename T>
void gate_up(Packed<T> gate_w, Packed<T> up_w, const T* const* x, int64_t rows, int64_t first, int64_t outputs, T* hidden) {
  for_tiles<T>(rows, [&](auto tile_rows, int64_t r) {
    alignas(64) float gate[tile_rows * kStrip], up[tile_rows * kStrip];
    multiply_tile<tile_rows>(x + r, gate_w, first, outputs, gate);
    multiply_tile<tile_rows>(x + r, up_w, first, outputs, up);
    for (int i = 0; i < tile_rows; i++) {
      gated(gate + i * kStrip, up + i * kStrip, outputs, hidden + (r + i) * gate_w.outputs + first);
    }
  });
}

// y[t] at outputs `first` to `first` + `outputs`: the sum over a of weight times result, in the order of a.
template <typename T>
void combine(const ExpertsCall<T>& call, const Sorted& sorted, int64_t first, int64_t outputs) {
  for (int64_t t = 0; t < call.tokens; t++) {
    float* y = call.y + t * call.depth + first;
    std::fill(y, y + outputs, 0.0f);
    for (int64_t row = t * call.chosen; row < (t + 1) * call.chosen; row++) {
      if (sorted.places[row] < 0) continue;
      const float* result = call.results + sorted.places[row] * call.depth + first;
      for (int64_t i = 0; i < outputs; i++) y[i] += call.weights[row] * result[i];
    }
  }
}

// Each used expert's weights are read once, in two phases: hidden values of all rows, then all that is left.
template <typename T, typename Pool>
void run_experts(Pool& pool, const ExpertsCall<T>& call) {
  const int64_t d = call.depth, f = call.hidden_depth;
  const Sorted sorted = sort_rows(call.ids, call.tokens, call.chosen, call.experts);
  const int64_t used = sorted.used.size(), rows = sorted.tokens.size();
  std::vector<const T*> x(rows), hidden(rows);
  for (int64_t place = 0; place < rows; place++) {
    x[place] = call.x + sorted.tokens[place] * d;
    hidden[place] = call.hidden + place * f;
  }
  const int64_t bytes = 3 * d * f * static_cast<int64_t>(sizeof(T)) * std::max(used, rows / 8);
  const int64_t threads = threads_for(pool, bytes);
  const int64_t f_width = outputs_per_task(f, threads), f_tasks = divide_up(f, f_width);
  const int64_t d_width = outputs_per_task(d, threads), d_tasks = divide_up(d, d_width);
  auto run = [&](size_t phase, int64_t task) {
    if (phase == 0) {
      const int64_t index = task / f_tasks, first = task % f_tasks * f_width;
      const int64_t start = sorted.starts[index], count = sorted.starts[index + 1] - start, e = sorted.used[index];
      gate_up(call.gate.after(e), call.up.after(e), x.data() + start, count, first, std::min(f_width, f - first),
              call.hidden + start * f);
      return;
    }
    const int64_t first = task * d_width, outputs = std::min(d_width, d - first);
    for (int64_t index = 0; index < used; index++) {
      const int64_t start = sorted.starts[index], count = sorted.starts[index + 1] - start;
      multiply(hidden.data() + start, count, call.down.after(sorted.used[index]), first, outputs,
               call.results + start * d + first, d);
    }
    combine(call, sorted, first, outputs);
  };
  in_parallel<2>(pool, threads, {used * f_tasks, d_tasks}, run);
}

}  // namespace moejax
