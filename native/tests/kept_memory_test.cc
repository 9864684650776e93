// Memory kept for the next array: never one block to two who hold it at once, nor one too short.
#include "../hosts/kept_memory.h"

#include <thread>
#include <vector>

#include "check.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;

constexpr size_t kRooms[] = {kKeptFrom, kKeptFrom + 64, kKeptFrom + kKeptFrom / 5, 3 * kKeptFrom};

constexpr int kThreads = 4;
std::atomic<int> started{0};

// Writes to both ends of its memory, so that one that is too short, or another's, is seen.
void take_and_keep(int thread) {
  ++started;
  while (started < kThreads) std::this_thread::yield();
  for (int turn = 0; turn < 20000; ++turn) {
    const size_t bytes = kRooms[(thread + turn) % 4];
    auto* memory = static_cast<int*>(take_memory(bytes));
    int* const last = memory + bytes / sizeof(int) - 1;
    const int mark = thread * 20000 + turn;
    *memory = *last = mark;
    if (turn % 16 == 0) std::this_thread::yield();
    CHECK(*memory == mark && *last == mark, "thread %d, turn %d: another wrote there", thread,
          turn);
    keep_memory(memory, bytes);
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
      held.push_back(static_cast<char*>(take_memory(kKeptFrom)));
    for (size_t one = 0; one < held.size(); ++one)
      for (size_t other = 0; other < one; ++other)
        CHECK(held[one] >= held[other] + kKeptFrom || held[other] >= held[one] + kKeptFrom,
              "blocks %zu and %zu overlap", one, other);
    for (char* each : held) keep_memory(each, kKeptFrom);
  }
}

}  // namespace

int main() {
  test_threads_have_memory_of_their_own();
  test_blocks_that_are_held_are_apart();
  return finish();
}
