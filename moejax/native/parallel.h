// Work on XLA's own threads, in phases: no phase begins before the one before it is done.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <thread>
#include <utility>

#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace moejax {

// Numbers too small for a normal float32 count as 0, on every thread alike, as XLA has it on its own.
class FlushDenormals {
 public:
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
};

// Weights worth waking another thread for, in bytes: it takes tens of microseconds, in which one thread reads these.
constexpr int64_t kWorthAThread = 128 << 10;

// Threads that `bytes` of work are for, at most all of the pool and the caller among them.
inline int64_t threads_for(xla::ffi::ThreadPool& pool, int64_t bytes) {
  return std::clamp<int64_t>(bytes / kWorthAThread, 1, std::max<int64_t>(1, pool.num_threads()));
}

// Calls phase_p(task) for all tasks 0 to counts[p] - 1 of each phase p, on `threads` threads, the caller among them.
//
// The caller could finish alone: a thread that comes late finds nothing left and touches nothing. A thread only waits
// for tasks that others are already running, so calls that share a pool cannot block one another.
template <size_t N, typename Run>
void in_parallel(xla::ffi::ThreadPool& pool, int64_t threads, std::array<int64_t, N> counts, Run run) {
  struct Progress {
    std::array<std::atomic<int64_t>, N> next{}, done{};
  };
  auto progress = std::make_shared<Progress>();
  auto work = [progress, counts, run] {
    FlushDenormals flush;
    for (size_t phase = 0; phase < N; phase++) {
      for (int64_t task; (task = progress->next[phase].fetch_add(1)) < counts[phase];) {
        run(phase, task);
        progress->done[phase].fetch_add(1, std::memory_order_release);
      }
      for (int spins = 0; progress->done[phase].load(std::memory_order_acquire) < counts[phase]; spins++) {
        if (spins < 4000) {
          _mm_pause();
        } else {
          std::this_thread::yield();
        }
      }
    }
  };
  int64_t most = *std::max_element(counts.begin(), counts.end());
  for (int64_t helper = 1; helper < std::min(threads, most); helper++) {
    auto copy = work;
    pool.Schedule(std::move(copy));
  }
  work();
}

// Outputs of one task: a multiple of kOutputs, so that every thread gets several tasks, and not over 64.
inline int64_t outputs_per_task(int64_t outputs, int64_t threads) {
  return std::clamp<int64_t>(outputs / (threads * 16) / 4 * 4, 4, 64);
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace moejax
