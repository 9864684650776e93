#include "workspace.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "runtime/buffer_cache.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(memory, bytes) ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(memory, bytes) ((void)0)
#endif

namespace layernorm {
namespace {

constexpr int64_t kFewestBytes = 64 * 1024;  // to keep: more calls fit than the first

struct Kept {
  char* memory = nullptr;
  int64_t bytes = 0;
  ~Kept() { std::free(memory); }
};
thread_local Kept kept;

char* allocate(int64_t bytes) {
#if defined(_WIN32)
  return static_cast<char*>(std::malloc(static_cast<size_t>(bytes)));
#else
  return static_cast<char*>(std::aligned_alloc(kLine, static_cast<size_t>(bytes)));
#endif
}

bool is_kept(int64_t bytes) { return static_cast<size_t>(bytes) < kCachedFrom; }

}  // namespace

Workspace::Workspace(int64_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  if (!is_kept(bytes)) {
    memory_ = static_cast<char*>(take_buffer(static_cast<size_t>(bytes)));
  } else {
    memory_ = std::exchange(kept.memory, nullptr);
    capacity_ = kept.bytes;
    if (!memory_ || capacity_ < bytes) {
      std::free(memory_);
      capacity_ = std::max(bytes, kFewestBytes);
      memory_ = allocate(capacity_);
    }
  }
  next_ = memory_;
  if (memory_) ASAN_POISON_MEMORY_REGION(memory_, bytes);
}

Workspace::~Workspace() {
  if (!memory_) return;
  ASAN_UNPOISON_MEMORY_REGION(memory_, bytes_);
  if (is_kept(bytes_)) {
    std::free(std::exchange(kept.memory, memory_));
    kept.bytes = capacity_;
  } else {
    return_buffer(memory_, static_cast<size_t>(bytes_));
  }
}

void* Workspace::take(int64_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(next_, bytes);
  return std::exchange(next_, next_ + needed_for(bytes));
}

}  // namespace layernorm
