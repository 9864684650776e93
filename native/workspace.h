// The working memory of one call, taken whole and then handed out in pieces.
#pragma once

#include <cstdint>

namespace layernorm {

constexpr int64_t kLine = 64;  // bytes of a cache line

// New memory has to be mapped page by page, which can take longer than the call. So each thread
// keeps the memory of its last call, up to kCachedFrom; more comes from the buffer cache. A call
// made on a thread where another call waits finds nothing kept, and allocates.
class Workspace {
 public:
  // `bytes`: what needed_for() says of all pieces, added up.
  explicit Workspace(int64_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // Whole lines, and one more, so that pieces of a power of two do not share a set of the cache.
  static constexpr int64_t needed_for(int64_t bytes) {
    return bytes == 0 ? 0 : ((bytes + kLine - 1) / kLine + 1) * kLine;
  }

  // False where there is no memory.
  explicit operator bool() const { return bytes_ == 0 || memory_; }
  // The next piece, which begins with a cache line.
  void* take(int64_t bytes);

 private:
  int64_t bytes_;
  int64_t capacity_ = 0;  // of memory_
  char* memory_ = nullptr;
  char* next_ = nullptr;
};

}  // namespace layernorm
