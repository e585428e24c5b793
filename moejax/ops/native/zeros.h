// Memory that is not there before it is written: zeros, in huge pages where the system gives them to who asks.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "parallel.h"

namespace moejax {

constexpr int64_t kHugePage = 2 << 20;

// A result and its bytes.
struct Bytes {
  char* first;
  int64_t count;
};

// Asks for huge pages for what lies in whole ones. Where there are none, nothing changes.
inline void ask_for_huge_pages(Bytes memory) {
#if defined(__linux__)
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory.first) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory.first) + memory.count) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

template <typename Pool>
void zero(Pool& pool, const std::vector<Bytes>& results) {
  std::vector<Bytes> tasks;
  int64_t all = 0;
  for (const Bytes& one : results) {
    ask_for_huge_pages(one);
    all += one.count;
    for (int64_t i = 0; i < one.count; i += kHugePage) {
      tasks.push_back({one.first + i, std::min(kHugePage, one.count - i)});
    }
  }
  auto run = [&](size_t, int64_t task) { std::memset(tasks[task].first, 0, tasks[task].count); };
  in_parallel<1>(pool, threads_for(pool, all), {static_cast<int64_t>(tasks.size())}, run);
}

}  // namespace moejax
