// TensorFlow and XLA have their threads take subnormal numbers for zero, and others may.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace layernorm {

// As long as it lives, subnormal numbers are what they are on its thread.
class SubnormalsKept {
 public:
  SubnormalsKept() : before_(mode()) {
    if (before_ & kFlushing) set_mode(before_ & ~kFlushing);
  }
  ~SubnormalsKept() {
    if (before_ & kFlushing) set_mode(before_);
  }
  SubnormalsKept(const SubnormalsKept&) = delete;
  SubnormalsKept& operator=(const SubnormalsKept&) = delete;

 private:
#if defined(__SSE2__)
  using Mode = unsigned int;
  static constexpr Mode kFlushing = 0x8040;  // results, and operands
  static Mode mode() { return _mm_getcsr(); }
  static void set_mode(Mode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
  using Mode = uint64_t;
  static constexpr Mode kFlushing = Mode{1} << 24;
  static Mode mode() {
    Mode mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void set_mode(Mode mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
  using Mode = unsigned int;
  static constexpr Mode kFlushing = 0;
  static Mode mode() { return 0; }
  static void set_mode(Mode) {}
#endif

  const Mode before_;
};

}  // namespace layernorm
