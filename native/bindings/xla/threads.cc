#include "threads.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <thread>

#include "runtime/pause.h"
#include "runtime/ranges.h"

namespace layernorm::xla {
namespace {

// How often the caller checks for the end before it yields its processor.
constexpr int kSpins = 4000;

// One call, shared by the caller and the tasks scheduled with XLA. XLA may start a task long after
// all work is done and the caller has returned: it then finds no range, and reads nothing but this.
class Shared {
 public:
  Shared(int64_t tasks, int64_t ranges, Threads::Body body, void* context)
      : tasks_(tasks), ranges_(ranges), left_(ranges), body_(body), context_(context) {}

  void work() { work_on_ranges(next_, left_, tasks_, ranges_, body_, context_); }

  // After work(), only for ranges that another thread has taken.
  void wait() const {
    for (int spin = 0; left_.load(std::memory_order_acquire) != 0; ++spin)
      spin < kSpins ? pause() : std::this_thread::yield();
  }

 private:
  const int64_t tasks_, ranges_;
  std::atomic<int64_t> next_{0}, left_;
  const Threads::Body body_;
  void* const context_;
};

void help(void* data) {
  const std::unique_ptr<std::shared_ptr<Shared>> shared(
      static_cast<std::shared_ptr<Shared>*>(data));
  (*shared)->work();
}

void destroy(const Api& api, Error* error) {
  DestroyError arguments = {sizeof(arguments), nullptr, error};
  api.destroy_error(&arguments);
}

int64_t count_threads(const Frame& frame) {
  int64_t count = 1;
  CountThreads arguments = {sizeof(arguments), nullptr, frame.context, &count};
  if (Error* error = frame.api->count_threads(&arguments)) {
    destroy(*frame.api, error);
    return 1;
  }
  return std::max(int64_t{1}, count);
}

// False where XLA refuses the task, or memory runs out.
bool schedule(const Frame& frame, const std::shared_ptr<Shared>& shared) {
  auto* own = new (std::nothrow) std::shared_ptr<Shared>(shared);
  if (!own) return false;
  Schedule arguments = {sizeof(arguments), nullptr, frame.context, help, own};
  Error* error = frame.api->schedule(&arguments);
  if (!error) return true;
  delete own;
  destroy(*frame.api, error);
  return false;
}

void run_tasks(void* pool, int64_t tasks, Threads::Body body, void* context) {
  const Frame& frame = *static_cast<const Frame*>(pool);
  const int64_t threads = std::min(count_threads(frame), tasks);
  std::shared_ptr<Shared> shared;
  try {
    shared =
        std::make_shared<Shared>(tasks, std::min(tasks, threads * kRangesPerThread), body, context);
  } catch (const std::bad_alloc&) {
    return body(context, 0, tasks);
  }
  for (int64_t helper = 1; helper < threads && schedule(frame, shared); ++helper) {
  }
  shared->work();
  shared->wait();
}

}  // namespace

Threads threads_of(const Frame& frame) {
  constexpr int64_t kMost = 1024;
  // The kernels only pass it to run_tasks.
  void* pool = const_cast<Frame*>(&frame);
  return {static_cast<int>(std::min(count_threads(frame), kMost)), pool, run_tasks};
}

}  // namespace layernorm::xla
