// Memory of exactly the length asked for, aligned to one element only.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "random.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#define LAYERNORM_TEST_PAGES 1
#endif

namespace layernorm::test {

// The address sanitizer sees an access past the end of the heap, except by masked and streamed
// instructions. A protected page before or after the memory catches those too.
enum class Place { heap, before_protected_page, after_protected_page };

// A NaN in every type, so that a wrong element read shows in the result.
constexpr unsigned char kPoison = 0xff;

class Buffer {
 public:
  Buffer() = default;
  Buffer(int64_t bytes, int64_t element_bytes, Random& random)
      : bytes_(static_cast<size_t>(bytes)) {
#if defined(LAYERNORM_TEST_PAGES)
    const Place place = static_cast<Place>(random.below(3));
#else
    const Place place = Place::heap;
#endif
    if (place == Place::heap) {
      const auto offset = static_cast<size_t>(random.below(64 / element_bytes) * element_bytes);
      allocation_ = std::malloc(offset + bytes_);
      if (!allocation_ && offset + bytes_ > 0) std::abort();
      data_ = static_cast<unsigned char*>(allocation_) + offset;
    } else {
      map_pages(place);
    }
    poison();
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() {
#if defined(LAYERNORM_TEST_PAGES)
    if (mapped_ > 0) {
      munmap(allocation_, mapped_);
      return;
    }
#endif
    std::free(allocation_);
  }

  void* data() const { return data_; }
  size_t size() const { return bytes_; }
  void poison() {
    if (bytes_ > 0) std::memset(data_, kPoison, bytes_);
  }
  bool same_bytes(const Buffer& other) const {
    return bytes_ == other.bytes_ && (bytes_ == 0 || std::memcmp(data_, other.data_, bytes_) == 0);
  }
  void copy_from(const Buffer& other) {
    if (bytes_ > 0) std::memcpy(data_, other.data_, bytes_);
  }

 private:
  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(allocation_, other.allocation_);
    std::swap(bytes_, other.bytes_);
    std::swap(mapped_, other.mapped_);
  }

  void map_pages(Place place) {
#if defined(LAYERNORM_TEST_PAGES)
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t whole = (bytes_ + page - 1) / page * page;
    mapped_ = whole + page;
    allocation_ =
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (allocation_ == MAP_FAILED) std::abort();
    auto* begin = static_cast<unsigned char*>(allocation_);
    const bool before = place == Place::before_protected_page;
    if (mprotect(before ? begin + whole : begin, page, PROT_NONE) != 0) std::abort();
    data_ = before ? begin + whole - bytes_ : begin + page;
#else
    static_cast<void>(place);
#endif
  }

  unsigned char* data_ = nullptr;
  void* allocation_ = nullptr;
  size_t bytes_ = 0;
  size_t mapped_ = 0;
};

}  // namespace layernorm::test
