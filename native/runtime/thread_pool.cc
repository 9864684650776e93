#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <exception>
#include <mutex>
#include <new>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#include <signal.h>
#endif

#include "environment.h"
#include "pause.h"
#include "ranges.h"

namespace layernorm {
namespace {

// How long an idle worker spins before it sleeps: long enough to catch the next layer of a network,
// too short to show in a profile.
constexpr int kSpins = 4000;

#if defined(__linux__)
using Processors = cpu_set_t;
#else
struct Processors {};
#endif

// The processors that the calling thread may run on; empty where that is not known.
Processors allowed() {
  Processors set = {};
#if defined(__linux__)
  if (sched_getaffinity(0, sizeof(set), &set) != 0) CPU_ZERO(&set);
#endif
  return set;
}

int allowed_processors() {
#if defined(__linux__)
  const Processors set = allowed();
  if (CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int current_processor() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Moves the calling thread to another of the processors. The scheduler may wake a worker where its
// caller runs, and let the two share that processor for milliseconds.
void move_from([[maybe_unused]] int processor, [[maybe_unused]] Processors others) {
#if defined(__linux__)
  CPU_CLR(processor, &others);
  if (CPU_COUNT(&others) > 0) sched_setaffinity(0, sizeof(others), &others);
#endif
}

// A container's limit on processors, if there is one.
long quota_processors() {
  long quota = 0, period = 0;
  if (std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (std::fscanf(file, "%ld %ld", &quota, &period) != 2) quota = 0;
    std::fclose(file);
  }
  return quota > 0 && period > 0 ? (quota - 1) / period + 1 : kMostThreads;
}

int default_threads() {
  constexpr const char* kName = "LAYERNORM_NUM_THREADS";
  const std::optional<std::string> wanted = environment::text_of(kName);
  const auto count = wanted ? environment::number_in(*wanted, false) : std::nullopt;
  if (count && *count >= 1 && *count <= kMostThreads) return static_cast<int>(*count);
  const auto processors = static_cast<int>(
      std::min({long{kMostThreads}, long{allowed_processors()}, quota_processors()}));
  static std::atomic<bool> told{false};
  if (wanted)
    environment::tell_once(told, kName, *wanted,
                           "a whole number from 1 to " + std::to_string(kMostThreads),
                           "the number of processors, " + std::to_string(processors) + ",");
  return processors;
}

// While it lives, new threads start with all signals blocked: signals go to the process's own threads.
class SignalsBlocked {
 public:
#if !defined(_WIN32)
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
#endif
};

class Pool {
 public:
  void run(int threads, int64_t tasks, Threads::Body body, void* context) {
    if (busy_.exchange(true, std::memory_order_acquire)) return body(context, 0, tasks);
    if (start(threads - 1))
      share(threads, tasks, body, context);
    else
      body(context, 0, tasks);
    busy_.store(false, std::memory_order_release);
  }

 private:
  void share(int threads, int64_t tasks, Threads::Body body, void* context) {
    const int64_t ranges = std::min<int64_t>(tasks, threads * kRangesPerThread);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = body;
      context_ = context;
      tasks_ = tasks;
      ranges_ = ranges;
      helpers_ = threads - 1;
      callers_processor_ = current_processor();
      next_.store(0, std::memory_order_relaxed);
      left_.store(ranges, std::memory_order_relaxed);
      call_.store(call_.load(std::memory_order_relaxed) + 1, std::memory_order_release);
      if (sleepers_ > 0) wake_.notify_all();
    }
    work_on_ranges(next_, left_, tasks, ranges, body, context);
    while (left_.load(std::memory_order_acquire) != 0) pause();
    // A worker still looking for a range of this call must not take one of the next.
    std::lock_guard<std::mutex> lock(mutex_);
    helpers_ = 0;
    while (inside_.load(std::memory_order_acquire) != 0) pause();
  }

  // False where no thread can be started; the caller then works alone.
  bool start(int workers) {
    if (workers_ >= workers) return true;
    [[maybe_unused]] const SignalsBlocked blocked;
    try {
      for (; workers_ < workers; ++workers_)
        std::thread([this, index = workers_] { serve(index); }).detach();
    } catch (const std::exception&) {
      return workers_ > 0;
    }
    return true;
  }

  void serve(int index) {
    const Processors processors = allowed();
    uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && call_.load(std::memory_order_acquire) == seen; ++spin)
        pause();
      Threads::Body body;
      void* context;
      int64_t tasks, ranges;
      int callers_processor;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        ++sleepers_;
        wake_.wait(lock, [&] { return call_.load(std::memory_order_relaxed) != seen; });
        --sleepers_;
        seen = call_.load(std::memory_order_relaxed);
        if (index >= helpers_) continue;
        inside_.fetch_add(1, std::memory_order_relaxed);
        body = body_;
        context = context_;
        tasks = tasks_;
        ranges = ranges_;
        callers_processor = callers_processor_;
      }
      if (callers_processor >= 0 && current_processor() == callers_processor)
        move_from(callers_processor, processors);
      work_on_ranges(next_, left_, tasks, ranges, body, context);
      inside_.fetch_sub(1, std::memory_order_release);
    }
  }

  // One call at a time. Not a mutex: a task may call run() itself, and a thread must not lock a mutex
  // that it owns.
  std::atomic<bool> busy_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  int workers_ = 0;
  std::atomic<uint64_t> call_{0};
  std::atomic<int64_t> next_{0}, left_{0};
  std::atomic<int> inside_{0};  // workers between taking a call and leaving it
  int sleepers_ = 0;
  int helpers_ = 0;  // workers that may join the current call
  int callers_processor_ = -1;
  Threads::Body body_ = nullptr;
  void* context_ = nullptr;
  int64_t tasks_ = 0, ranges_ = 0;
};

std::atomic<int> num_threads{0};
std::atomic<Pool*> pool{nullptr};

#if !defined(_WIN32)
// A forked child has no workers, and locks in any state: it makes a new pool.
const bool forks_are_seen =
    pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr, std::memory_order_release); }) == 0;
#else
constexpr bool forks_are_seen = true;
#endif

// Never destroyed: its workers may still run while the process exits. Null if memory runs out.
Pool* the_pool() {
  Pool* existing = pool.load(std::memory_order_acquire);
  if (existing || !forks_are_seen) return existing;
  auto* created = new (std::nothrow) Pool;
  if (!created || pool.compare_exchange_strong(existing, created)) return created;
  delete created;
  return existing;
}

}  // namespace

int get_num_threads() {
  int count = num_threads.load(std::memory_order_relaxed);
  if (count == 0) {
    count = default_threads();
    num_threads.store(count, std::memory_order_relaxed);
  }
  return count;
}

void set_num_threads(int count) { num_threads.store(count, std::memory_order_relaxed); }

Threads pool_threads(int most) {
  const intptr_t count = std::min(get_num_threads(), most);
  return {static_cast<int>(count), reinterpret_cast<void*>(count),
          [](void* count, int64_t tasks, Threads::Body body, void* context) {
            const auto threads = static_cast<int>(reinterpret_cast<intptr_t>(count));
            if (Pool* own = the_pool()) return own->run(threads, tasks, body, context);
            body(context, 0, tasks);
          }};
}

}  // namespace layernorm
