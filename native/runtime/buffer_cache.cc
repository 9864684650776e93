#include "buffer_cache.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace layernorm {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kKeptByDefault = size_t{128} << 20;

struct Block {
  void* memory;
  size_t bytes;
};

// All access under the lock, which nobody waits for: after a fork it may be locked for good.
std::mutex lock;
std::array<Block, 8> blocks;  // the longest unused first
size_t count = 0, kept = 0;

size_t most_kept() {
  static const size_t most = [] {
    const char* wanted = std::getenv("LAYERNORM_KEEP_BYTES");
    return wanted ? static_cast<size_t>(std::strtoull(wanted, nullptr, 10)) : kKeptByDefault;
  }();
  return most;
}

Block remove(size_t index) {
  const Block block = blocks[index];
  std::copy(blocks.begin() + index + 1, blocks.begin() + count, blocks.begin() + index);
  --count;
  kept -= block.bytes;
  return block;
}

void* fresh_memory(size_t bytes) {
#if defined(__linux__)
  void* memory = std::aligned_alloc(kHugePage, (bytes + kHugePage - 1) / kHugePage * kHugePage);
  if (memory) madvise(memory, bytes, MADV_HUGEPAGE);
  return memory;
#else
  return std::malloc(bytes);
#endif
}

}  // namespace

void* take_buffer(size_t bytes) {
  {
    const std::unique_lock<std::mutex> held(lock, std::try_to_lock);
    for (size_t index = held ? count : 0; index-- > 0;)
      if (blocks[index].bytes >= bytes && blocks[index].bytes <= bytes + bytes / 4)
        return remove(index).memory;
  }
  return fresh_memory(bytes);
}

void return_buffer(void* memory, size_t bytes) {
  const std::unique_lock<std::mutex> held(lock, std::try_to_lock);
  if (!held || bytes > most_kept()) return std::free(memory);
  while (count == blocks.size() || (count > 0 && kept + bytes > most_kept()))
    std::free(remove(0).memory);
  blocks[count++] = {memory, bytes};
  kept += bytes;
}

}  // namespace layernorm
