// A call's tasks divided into ranges, which its threads take one after another.
#pragma once

#include <algorithm>
#include <atomic>

#include "layer_norm.h"

namespace layernorm {

// More than one, so that the others take the share of a thread that starts late.
constexpr int64_t kRangesPerThread = 4;

// Works on ranges until none is left. `next` is the first that no thread has taken, `left` counts
// those that are not done.
inline void work_on_ranges(std::atomic<int64_t>& next, std::atomic<int64_t>& left, int64_t tasks,
                           int64_t ranges, Threads::Body body, void* context) {
  for (;;) {
    const int64_t range = next.fetch_add(1, std::memory_order_relaxed);
    if (range >= ranges) return;
    const int64_t share = tasks / ranges, extra = tasks % ranges;
    const int64_t begin = range * share + std::min(range, extra);
    body(context, begin, begin + share + (range < extra ? 1 : 0));
    left.fetch_sub(1, std::memory_order_acq_rel);
  }
}

}  // namespace layernorm
