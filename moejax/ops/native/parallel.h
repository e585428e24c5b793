// Work on XLA's own threads, in phases: no phase begins before the one before it is done.
//
// A pool has num_threads() and Schedule(function): XLA's ThreadPool, or that of a program without XLA.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "cpu.h"

namespace moejax {

// Weights worth waking another thread for, in bytes: it takes tens of microseconds, in which one thread reads these.
constexpr int64_t kWorthAThread = 128 << 10;

// Threads that `bytes` of work are for, at most all of the pool and the caller among them.
template <typename Pool>
int64_t threads_for(Pool& pool, int64_t bytes) {
  return std::clamp<int64_t>(bytes / kWorthAThread, 1, std::max<int64_t>(1, pool.num_threads()));
}

// Threads that have done their part of a call and stay for a moment, because the next call of a step comes within
// microseconds and waking a thread takes tens of them.
class Standby {
 public:
  using Work = std::function<void()>;

  // Gives `work` to a thread that waits here; false if there is none.
  bool hand_over(const Work& work) {
    Seat* seat;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (waiting_.empty()) return false;
      seat = waiting_.back();
      waiting_.pop_back();
    }
    seat->work = work;
    seat->taken.store(true, std::memory_order_release);
    return true;
  }

  // Does `work` and what is handed over then; at most kTurns times, because the pool has other work, too.
  void run(Work work) {
    constexpr int kTurns = 64;
    for (int turn = 0; turn < kTurns; turn++) {
      work();
      if (!wait(&work)) return;
    }
    work();
  }

 private:
  struct Seat {
    std::atomic<bool> taken{false};
    Work work;
  };
  static constexpr std::chrono::microseconds kPatience{100};

  // The next work, or false after kPatience. Other threads that want this core get it.
  bool wait(Work* work) {
    Seat seat;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      waiting_.push_back(&seat);
    }
    const auto end = std::chrono::steady_clock::now() + kPatience;
    for (int spins = 0; !seat.taken.load(std::memory_order_acquire); spins++) {
      wait_briefly();
      if (spins % 64 != 63) continue;
      std::this_thread::yield();
      if (std::chrono::steady_clock::now() > end && leave(&seat)) return false;
    }
    *work = std::move(seat.work);
    return true;
  }

  // False if work for that seat is on its way.
  bool leave(Seat* seat) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto place = std::find(waiting_.begin(), waiting_.end(), seat);
    if (place == waiting_.end()) return false;
    waiting_.erase(place);
    return true;
  }

  std::mutex mutex_;
  std::vector<Seat*> waiting_;
};

inline Standby& standby() {
  static Standby* const one = new Standby;  // never destroyed: threads may sit here while the process ends
  return *one;
}

// Calls run(p, task) for all tasks 0 to counts[p] - 1 of each phase p, on `threads` threads, the caller among them.
//
// Each thread begins with a range of its own, so that what it reads ahead is its own next task, and then helps others.
// The caller could finish alone: a thread that comes late finds nothing left and touches nothing. A thread only waits
// for tasks that others are already running, so calls that share a pool cannot block one another.
template <size_t N, typename Pool, typename Run>
void in_parallel(Pool& pool, int64_t threads, std::array<int64_t, N> counts, Run run) {
  struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
  };
  struct Progress {
    std::vector<Counter> next;  // [N, threads]: tasks begun of each range
    std::array<Counter, N> done;
  };
  threads = std::min(threads, std::max<int64_t>(1, *std::max_element(counts.begin(), counts.end())));
  if (threads == 1) {
    FlushDenormals flush;
    for (size_t phase = 0; phase < N; phase++) {
      for (int64_t task = 0; task < counts[phase]; task++) run(phase, task);
    }
    return;
  }
  auto progress = std::make_shared<Progress>();
  progress->next = std::vector<Counter>(N * threads);
  auto work = [progress, counts, run, threads](int64_t mine) {
    FlushDenormals flush;
    for (size_t phase = 0; phase < N; phase++) {
      for (int64_t turn = 0; turn < threads; turn++) {
        const int64_t range = (mine + turn) % threads, end = counts[phase] * (range + 1) / threads;
        const int64_t begin = counts[phase] * range / threads;
        std::atomic<int64_t>& next = progress->next[phase * threads + range].value;
        while (begin + next.load(std::memory_order_relaxed) < end) {
          const int64_t task = begin + next.fetch_add(1);
          if (task >= end) break;
          run(phase, task);
          progress->done[phase].value.fetch_add(1, std::memory_order_release);
        }
      }
      for (int spins = 0; progress->done[phase].value.load(std::memory_order_acquire) < counts[phase]; spins++) {
        if (spins < 4000) {
          wait_briefly();
        } else {
          std::this_thread::yield();
        }
      }
    }
  };
  for (int64_t helper = 1; helper < threads; helper++) {
    Standby::Work part = [work, helper] { work(helper); };
    if (!standby().hand_over(part)) {
      pool.Schedule([part] { standby().run(part); });
    }
  }
  work(0);
}

// Outputs of one task: a strip's 64, or a half or a quarter of it where every thread would get only few tasks.
inline int64_t outputs_per_task(int64_t outputs, int64_t threads) {
  return outputs >= threads * 256 ? 64 : outputs >= threads * 128 ? 32 : 16;
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace moejax
