// The buffer cache: never one buffer for two owners at once, nor one that is too short.
#include "runtime/buffer_cache.h"

#include <thread>
#include <vector>

#include "check.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;

constexpr size_t kSizes[] = {kCachedFrom, kCachedFrom + 64, kCachedFrom + kCachedFrom / 5,
                             3 * kCachedFrom};

constexpr int kThreads = 4, kTurns = 4000;
std::atomic<int> started{0};

// Writes to both ends of its memory, which shows a buffer that is too short, or another thread's.
void take_and_return(int thread) {
  ++started;
  while (started < kThreads) std::this_thread::yield();
  for (int turn = 0; turn < kTurns; ++turn) {
    const size_t bytes = kSizes[(thread + turn) % 4];
    auto* memory = static_cast<int*>(take_buffer(bytes));
    int* const last = memory + bytes / sizeof(int) - 1;
    const int mark = thread * kTurns + turn;
    *memory = *last = mark;
    if (turn % 16 == 0) std::this_thread::yield();
    CHECK(*memory == mark && *last == mark, "thread %d, turn %d: another wrote there", thread,
          turn);
    return_buffer(memory, bytes);
  }
}

void test_threads_have_memory_of_their_own() {
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) threads.emplace_back(take_and_return, thread);
  for (std::thread& each : threads) each.join();
}

void test_buffers_in_use_do_not_overlap() {
  for (int turn = 0; turn < 3; ++turn) {
    std::vector<char*> buffers;
    for (int count = 0; count < 12; ++count)
      buffers.push_back(static_cast<char*>(take_buffer(kCachedFrom)));
    for (size_t one = 0; one < buffers.size(); ++one)
      for (size_t other = 0; other < one; ++other)
        CHECK(buffers[one] >= buffers[other] + kCachedFrom ||
                  buffers[other] >= buffers[one] + kCachedFrom,
              "buffers %zu and %zu overlap", one, other);
    for (char* each : buffers) return_buffer(each, kCachedFrom);
  }
}

}  // namespace

int main() {
  test_threads_have_memory_of_their_own();
  test_buffers_in_use_do_not_overlap();
  return finish();
}
