#include "buffer_cache.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "environment.h"

namespace layernorm {
namespace {

constexpr size_t kCachedByDefault = size_t{128} << 20;

struct Buffer {
  void* memory;
  size_t bytes;
};

// Guarded by the lock, which no thread waits for: after a fork it may stay locked forever.
std::mutex lock;
std::array<Buffer, 8> buffers;  // the longest unused first
size_t count = 0, cached_bytes = 0;

size_t most_bytes() {
  static const size_t most = [] {
    constexpr const char* kName = "LAYERNORM_KEEP_BYTES";
    const std::optional<std::string> wanted = environment::text_of(kName);
    if (!wanted) return kCachedByDefault;
    const std::optional<uint64_t> bytes = environment::number_in(*wanted, true);
    if (bytes && *bytes <= SIZE_MAX) return static_cast<size_t>(*bytes);
    static std::atomic<bool> told{false};
    environment::tell_once(told, kName, *wanted, "bytes, such as 0, 134217728, 128M or 1GiB",
                           "the default, 128M,");
    return kCachedByDefault;
  }();
  return most;
}

Buffer remove(size_t index) {
  const Buffer buffer = buffers[index];
  std::copy(buffers.begin() + index + 1, buffers.begin() + count, buffers.begin() + index);
  --count;
  cached_bytes -= buffer.bytes;
  return buffer;
}

void* new_memory(size_t bytes) {
#if defined(__linux__)
  constexpr size_t kHugePage = size_t{2} << 20;
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
    const std::unique_lock<std::mutex> locked(lock, std::try_to_lock);
    for (size_t index = locked ? count : 0; index-- > 0;)
      if (buffers[index].bytes >= bytes && buffers[index].bytes <= bytes + bytes / 4)
        return remove(index).memory;
  }
  return new_memory(bytes);
}

void return_buffer(void* memory, size_t bytes) {
  const std::unique_lock<std::mutex> locked(lock, std::try_to_lock);
  if (!locked || bytes > most_bytes()) return std::free(memory);
  while (count == buffers.size() || (count > 0 && cached_bytes + bytes > most_bytes()))
    std::free(remove(0).memory);
  buffers[count++] = {memory, bytes};
  cached_bytes += bytes;
}

}  // namespace layernorm
