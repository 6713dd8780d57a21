// Work dealt to the threads of XLA's own pool.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#include "xla/ffi/api/ffi.h"

#define EDLM_EXPORT(name) extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* name(XLA_FFI_CallFrame*)

namespace edlm {

// Calls `work(begin, end)` over all of [0, items), in parts of at least some five microseconds, the same number to each
// thread if all are as fast; `cost` is about how many products of an item keep a core as long as it does.
//
// The caller takes its share and then waits for what others have begun: never for a thread that has not started, for
// that one may itself be waiting, so nothing can lock. A helper that comes too late finds nothing and touches nothing.
template <class Work>
void deal(xla::ffi::ThreadPool& pool, int64_t items, int64_t cost, Work work) {
  constexpr int64_t kLeast = 250'000, kMost = 8;  // products of a part; parts of a thread
  struct Desk {
    std::atomic<int64_t> next{0}, done{0};
    int64_t items, grain;
    Work work;

    void serve() {
      for (;;) {
        const int64_t begin = next.fetch_add(grain), end = std::min(begin + grain, items);
        if (begin >= items) return;
        work(begin, end);
        done.fetch_add(end - begin);
      }
    }

    Desk(int64_t items, int64_t grain, Work&& work) : items(items), grain(grain), work(std::move(work)) {}
  };
  const int64_t threads = pool.num_threads();
  const int64_t shares = std::min(kMost, items * cost / kLeast / std::max<int64_t>(threads, 1));
  if (threads < 2 || shares < 1) {
    work(int64_t{0}, items);
    return;
  }
  const int64_t grain = (items + shares * threads - 1) / (shares * threads);
  const int64_t helpers = std::min(threads, (items + grain - 1) / grain) - 1;
  auto desk = std::make_shared<Desk>(items, grain, std::move(work));
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([desk] { desk->serve(); });
  desk->serve();
  for (int spins = 0; desk->done.load() < items; ++spins) {
    if (spins > 1000) std::this_thread::yield();
  }
}

}  // namespace edlm
