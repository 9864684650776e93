// XLA's threads as the kernels use them, on pools that XLA might have: one that works, one that
// starts its tasks long after the call, one that never does, one that accepts none.
#include <chrono>
#include <thread>
#include <vector>

#include "bindings/xla/threads.h"
#include "check.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;

struct Task {
  void (*run)(void*);
  void* data;
};

// What XLA's opaque pointers point to here.
struct FakeContext {
  int64_t threads = 1;
  bool has_pool = true;
  bool starts_threads = false;
  std::vector<Task> waiting;
  std::vector<std::thread> running;
  int errors = 0;
};

FakeContext* of(xla::Context* context) { return reinterpret_cast<FakeContext*>(context); }

xla::Error* an_error(FakeContext* context) {
  ++context->errors;
  return reinterpret_cast<xla::Error*>(context);
}

xla::Api fake_api() {
  xla::Api api = {};
  api.destroy_error = [](xla::DestroyError* arguments) {
    --reinterpret_cast<FakeContext*>(arguments->error)->errors;
  };
  api.count_threads = [](xla::CountThreads* arguments) -> xla::Error* {
    FakeContext* context = of(arguments->context);
    if (!context->has_pool) return an_error(context);
    *arguments->count = context->threads;
    return nullptr;
  };
  api.schedule = [](xla::Schedule* arguments) -> xla::Error* {
    FakeContext* context = of(arguments->context);
    if (!context->has_pool) return an_error(context);
    if (context->starts_threads) {
      context->running.emplace_back(arguments->task, arguments->data);
    } else {
      context->waiting.push_back({arguments->task, arguments->data});
    }
    return nullptr;
  };
  return api;
}

// Counts how often each task was done. Not atomic, so that the thread sanitizer sees two threads at
// one task; with slow helpers, a call that does not wait for them returns too early.
struct Count {
  Count(int64_t tasks, bool slow) : slow_helpers(slow), done(static_cast<size_t>(tasks)) {}

  static void body(void* context, int64_t begin, int64_t end) {
    auto* count = static_cast<Count*>(context);
    // The caller is slow too, or it would do all the tasks before a helper starts.
    if (count->slow_helpers) {
      const bool is_caller = std::this_thread::get_id() == count->caller;
      std::this_thread::sleep_for(std::chrono::milliseconds(is_caller ? 1 : 2));
    }
    for (int64_t task = begin; task < end; ++task) ++count->done[static_cast<size_t>(task)];
  }

  const bool slow_helpers;
  const std::thread::id caller = std::this_thread::get_id();
  std::vector<int> done;
};

bool covers_its_tasks(FakeContext* context, int64_t tasks, bool slow_helpers = false) {
  const xla::Api api = fake_api();
  xla::Frame frame = {};
  frame.api = &api;
  frame.context = reinterpret_cast<xla::Context*>(context);
  Count count(tasks, slow_helpers);
  const Threads threads = xla::threads_of(frame);
  threads.run(threads.pool, tasks, Count::body, &count);
  const std::vector<int> done = count.done;
  for (std::thread& each : context->running) each.join();
  for (const int times : done)
    if (times != 1) return false;
  return true;
}

constexpr int64_t kTasks[] = {1, 2, 3, 7, 8, 31, 33, 1001};

void test_every_task_is_done_once_on_threads_that_work() {
  for (const bool slow_helpers : {false, true}) {
    for (const int64_t threads : {0, 1, 2, 5, 16}) {
      for (const int64_t tasks : kTasks) {
        FakeContext context;
        context.threads = threads;
        context.starts_threads = true;
        CHECK(covers_its_tasks(&context, tasks, slow_helpers), "%d tasks on %d threads",
              static_cast<int>(tasks), static_cast<int>(threads));
      }
    }
  }
}

void test_tasks_that_start_after_the_call_do_nothing() {
  for (const int64_t tasks : kTasks) {
    FakeContext context;
    context.threads = 4;
    CHECK(covers_its_tasks(&context, tasks), "%d tasks, none started", static_cast<int>(tasks));
    for (const Task& each : context.waiting) each.run(each.data);
  }
}

void test_without_a_pool_the_caller_works_alone() {
  FakeContext context;
  context.has_pool = false;
  CHECK(covers_its_tasks(&context, 33), "33 tasks without a pool");
  CHECK(context.errors == 0, "%d errors were not destroyed", context.errors);
}

}  // namespace

int main() {
  test_every_task_is_done_once_on_threads_that_work();
  test_tasks_that_start_after_the_call_do_nothing();
  test_without_a_pool_the_caller_works_alone();
  return finish();
}
