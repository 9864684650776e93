// Memory kept for the next array: never one block to two who hold it at once, nor one too short.
#include "runtime/buffer_cache.h"

#include <thread>
#include <vector>

#include "check.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;

constexpr size_t kRooms[] = {kCachedFrom, kCachedFrom + 64, kCachedFrom + kCachedFrom / 5,
                             3 * kCachedFrom};

constexpr int kThreads = 4;
std::atomic<int> started{0};

// Writes to both ends of its memory, so that one that is too short, or another's, is seen.
void take_and_keep(int thread) {
  ++started;
  while (started < kThreads) std::this_thread::yield();
  for (int turn = 0; turn < 20000; ++turn) {
    const size_t bytes = kRooms[(thread + turn) % 4];
    auto* memory = static_cast<int*>(take_buffer(bytes));
    int* const last = memory + bytes / sizeof(int) - 1;
    const int mark = thread * 20000 + turn;
    *memory = *last = mark;
    if (turn % 16 == 0) std::this_thread::yield();
    CHECK(*memory == mark && *last == mark, "thread %d, turn %d: another wrote there", thread,
          turn);
    return_buffer(memory, bytes);
  }
}

void test_threads_have_memory_of_their_own() {
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) threads.emplace_back(take_and_keep, thread);
  for (std::thread& each : threads) each.join();
}

void test_blocks_that_are_held_are_apart() {
  for (int turn = 0; turn < 3; ++turn) {
    std::vector<char*> held;
    for (int count = 0; count < 12; ++count)
      held.push_back(static_cast<char*>(take_buffer(kCachedFrom)));
    for (size_t one = 0; one < held.size(); ++one)
      for (size_t other = 0; other < one; ++other)
        CHECK(held[one] >= held[other] + kCachedFrom || held[other] >= held[one] + kCachedFrom,
              "blocks %zu and %zu overlap", one, other);
    for (char* each : held) return_buffer(each, kCachedFrom);
  }
}

}  // namespace

int main() {
  test_threads_have_memory_of_their_own();
  test_blocks_that_are_held_are_apart();
  return finish();
}
