// The thread pool: every task done once, for any callers and any number of threads.
#include <atomic>
#include <thread>
#include <vector>

#include "judge.h"
#include "memory.h"
#include "runtime/thread_pool.h"
#include "variations.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/wait.h>
#include <unistd.h>
#define LAYERNORM_TEST_FORK 1
#endif
// The thread sanitizer allows no threads after a fork.
#if defined(__SANITIZE_THREAD__)
#undef LAYERNORM_TEST_FORK
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#undef LAYERNORM_TEST_FORK
#endif
#endif

namespace {

using namespace layernorm;
using namespace layernorm::test;

// Counts how often each task was done. The counts are not atomic, so that the thread sanitizer sees
// two threads at one task, or a call that returns before its last task is done.
struct Count {
  explicit Count(int64_t tasks) : done(static_cast<size_t>(tasks)) {}

  static void body(void* context, int64_t begin, int64_t end) {
    auto* count = static_cast<Count*>(context);
    const auto tasks = static_cast<int64_t>(count->done.size());
    if (begin < 0 || end > tasks || begin > end) {
      count->out_of_range.store(true);
      return;
    }
    for (int64_t task = begin; task < end; ++task) ++count->done[static_cast<size_t>(task)];
  }
  bool each_once() const {
    for (const int times : done)
      if (times != 1) return false;
    return !out_of_range.load();
  }

  std::vector<int> done;
  std::atomic<bool> out_of_range{false};
};

bool call_covers_its_tasks(int64_t tasks) {
  Count count(tasks);
  const Threads threads = pool_threads();
  threads.run(threads.pool, tasks, Count::body, &count);
  return count.each_once();
}

constexpr int64_t kTasks[] = {1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 100, 1001};

void test_every_task_is_done_once() {
  for (int threads = 1; threads <= 8; ++threads) {
    set_num_threads(threads);
    CHECK(get_num_threads() == threads, "set %d threads, got %d", threads, get_num_threads());
    CHECK(pool_threads().count == threads, "the callback's count is not %d", threads);
    for (int call = 0; call < 100; ++call)
      for (const int64_t tasks : kTasks)
        CHECK(call_covers_its_tasks(tasks), "%lld tasks on %d threads: not each done once",
              static_cast<long long>(tasks), threads);
  }
}

// Calls far enough apart for the workers to fall asleep.
void test_every_task_is_done_once_after_a_pause() {
  set_num_threads(4);
  for (int call = 0; call < 30; ++call) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    CHECK(call_covers_its_tasks(100), "after a pause: not each task done once");
  }
}

void test_no_tasks() {
  set_num_threads(3);
  CHECK(call_covers_its_tasks(0), "a call of no tasks did some");
}

void test_eight_callers_at_once() {
  set_num_threads(4);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 8; ++caller)
    callers.emplace_back([] {
      for (int call = 0; call < 200; ++call)
        CHECK(call_covers_its_tasks(100), "beside other callers: not each task done once");
    });
  for (std::thread& caller : callers) caller.join();
}

struct Nested {
  Count outer{12};
  std::atomic<int> failed{0};
  static void body(void* context, int64_t begin, int64_t end) {
    auto* nested = static_cast<Nested*>(context);
    Count::body(&nested->outer, begin, end);
    for (int64_t task = begin; task < end; ++task)
      if (!call_covers_its_tasks(17)) ++nested->failed;
  }
};

void test_a_task_may_call_the_pool() {
  set_num_threads(4);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 8; ++caller)
    callers.emplace_back([] {
      for (int call = 0; call < 50; ++call) {
        Nested nested;
        const Threads threads = pool_threads();
        threads.run(threads.pool, 12, Nested::body, &nested);
        CHECK(nested.outer.each_once() && nested.failed == 0, "a call within a call went wrong");
      }
    });
  for (std::thread& caller : callers) caller.join();
}

void test_the_number_of_threads_may_change_meanwhile() {
  std::atomic<bool> stop{false};
  std::thread changing([&] {
    for (int count = 1; !stop.load(); count = count % 8 + 1) {
      set_num_threads(count);
      std::this_thread::yield();
    }
  });
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller)
    callers.emplace_back([] {
      for (int call = 0; call < 300; ++call)
        CHECK(call_covers_its_tasks(50), "while the count changes: not each task done once");
    });
  for (std::thread& caller : callers) caller.join();
  stop.store(true);
  changing.join();
}

#if defined(LAYERNORM_TEST_FORK)
// 0 if a forked child could use the pool; an alarm ends one that hangs.
int status_of_a_child() {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    bool right = true;
    for (int call = 0; call < 20; ++call) right = right && call_covers_its_tasks(100);
    set_num_threads(3);
    right = right && call_covers_its_tasks(100);
    _exit(right ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return status;
}

void test_a_fork_between_calls() {
  set_num_threads(4);
  for (int fork = 0; fork < 10; ++fork) {
    CHECK(call_covers_its_tasks(100), "before a fork");
    const int status = status_of_a_child();
    CHECK(status == 0, "the child of a fork ended with status %d", status);
    CHECK(call_covers_its_tasks(100), "after a fork");
  }
}

// Neither a pool nor a thread can be made: the caller does all the work.
void test_without_memory_the_caller_works_alone() {
  set_num_threads(4);
  CHECK(call_covers_its_tasks(100), "before a fork");
  const pid_t child = fork();
  if (child == 0) {
    Count without_pool(100), without_threads(100);
    const Threads threads = pool_threads();
    has_memory = false;
    threads.run(threads.pool, 100, Count::body, &without_pool);
    has_memory = true;
    set_num_threads(2);
    const bool has_pool = call_covers_its_tasks(100);
    set_num_threads(8);
    const Threads more = pool_threads();
    has_memory = false;
    more.run(more.pool, 100, Count::body, &without_threads);
    _exit(without_pool.each_once() && has_pool && without_threads.each_once() ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(status == 0, "a process without memory ended with status %d", status);
}

// The tasks allocate nothing: what is under test is the pool, not the allocator's locks.
void test_a_fork_while_the_pool_works() {
  set_num_threads(4);
  std::atomic<bool> stop{false}, ready{false};
  std::thread working([&] {
    Count count(200);
    const Threads threads = pool_threads();
    int calls = 0;
    while (!stop.load()) {
      threads.run(threads.pool, 200, Count::body, &count);
      ready.store(++calls > 10);
    }
    for (const int times : count.done)
      CHECK(times == calls, "a task was done %d times in %d calls", times, calls);
  });
  while (!ready.load()) std::this_thread::yield();
  for (int fork = 0; fork < 10; ++fork) {
    const int status = status_of_a_child();
    CHECK(status == 0, "the child of a fork in the middle of a call ended with status %d", status);
  }
  stop.store(true);
  working.join();
}
#endif

Outputs run_on(const Threads& threads, const Case& given, const Inputs& inputs) {
  Outputs outputs = make_outputs(given, inputs);
  CHECK(run_forward(given, inputs, outputs, threads) == Status::ok, "forward");
  CHECK(run_backward(given, inputs, outputs, threads) == Status::ok, "backward");
  return outputs;
}

Outputs run_on(int threads, const Case& given, const Inputs& inputs) {
  set_num_threads(threads);
  return run_on(pool_threads(), given, inputs);
}

bool same_bits(const Outputs& a, const Outputs& b) {
  return a.y.same_rows(b.y) && a.dx.same_rows(b.dx) && a.dweight.same_rows(b.dweight) &&
         a.dbias.same_rows(b.dbias);
}

// Enough work for the kernels to ask for threads.
Case large_case(DataType type, const Shape& shape) {
  Case given;
  given.type = type;
  given.shape = shape;
  given.x_values = Values::mixed;
  given.seed = static_cast<uint64_t>(shape.cols);
  return given;
}

void test_the_kernels_give_the_same_bits_on_any_number_of_threads() {
  for (const DataType type : {DataType::float32, DataType::bfloat16})
    for (const Shape& shape : {Shape{1501, 129, 1}, Shape{3, 501, 150}, Shape{18, 12000, 1}}) {
      const Case given = large_case(type, shape);
      const Inputs inputs = make_inputs(given);
      const Outputs expected = run_on(1, given, inputs);
      for (const int threads : {2, 3, 16, 1})
        CHECK(same_bits(run_on(threads, given, inputs), expected), "other bits on %d threads: %s",
              threads, given.text().c_str());
    }
}

void test_the_kernels_give_the_same_bits_to_several_callers() {
  const Case given = large_case(DataType::float32, {1501, 65, 1});
  const Inputs inputs = make_inputs(given);
  const Outputs expected = run_on(1, given, inputs);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 8; ++caller)
    callers.emplace_back([&] {
      for (int call = 0; call < 3; ++call)
        CHECK(same_bits(run_on(4, given, inputs), expected), "other bits beside other callers");
    });
  for (std::thread& caller : callers) caller.join();
}

#if defined(__x86_64__)
constexpr unsigned kFlushing = 0x8040;  // results and operands

// As XLA's threads are.
void run_on_one_that_flushes(void*, int64_t tasks, Threads::Body body, void* context) {
  std::thread([=] {
    __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | kFlushing);
    body(context, 0, tasks);
  }).join();
}

void test_subnormals_are_kept_whoever_calls_and_works() {
  const unsigned before = __builtin_ia32_stmxcsr();
  set_num_threads(12);
  for (const Shape& shape : {Shape{3, 129, 1}, Shape{1501, 129, 1}, Shape{2, 33, 150}}) {
    Case given = large_case(DataType::float32, shape);
    given.x_values = Values::subnormals;
    given.eps = 0;
    const Inputs inputs = make_inputs(given);
    const Outputs expected = run_on(Threads{1, nullptr, nullptr}, given, inputs);
    for (const Threads& threads : {Threads{1, nullptr, nullptr}, pool_threads(),
                                   Threads{2, nullptr, run_on_one_that_flushes}}) {
      __builtin_ia32_ldmxcsr(before | kFlushing);
      const Outputs outputs = run_on(threads, given, inputs);
      const unsigned after = __builtin_ia32_stmxcsr();
      __builtin_ia32_ldmxcsr(before);
      CHECK(same_bits(outputs, expected), "other bits where subnormals are flushed: %s",
            given.text().c_str());
      CHECK((after & kFlushing) == kFlushing, "the caller's flags are not as they were");
    }
  }
}
#endif

}  // namespace

int main() {
#if defined(__x86_64__)
  test_subnormals_are_kept_whoever_calls_and_works();
#endif
  test_every_task_is_done_once();
  test_every_task_is_done_once_after_a_pause();
  test_no_tasks();
  test_eight_callers_at_once();
  test_a_task_may_call_the_pool();
  test_the_number_of_threads_may_change_meanwhile();
#if defined(LAYERNORM_TEST_FORK)
  test_a_fork_between_calls();
  test_without_memory_the_caller_works_alone();
  test_a_fork_while_the_pool_works();
#endif
  test_the_kernels_give_the_same_bits_on_any_number_of_threads();
  test_the_kernels_give_the_same_bits_to_several_callers();
  return finish();
}
