// TensorFlow and XLA set their threads to flush subnormal numbers to zero; other callers may too.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace layernorm {

// While it lives, its thread computes with subnormal numbers; then the thread's mode is restored.
class NoFlushToZero {
 public:
  NoFlushToZero() : before_(mode()) {
    if (before_ & kFlushing) set_mode(before_ & ~kFlushing);
  }
  ~NoFlushToZero() {
    if (before_ & kFlushing) set_mode(before_);
  }
  NoFlushToZero(const NoFlushToZero&) = delete;
  NoFlushToZero& operator=(const NoFlushToZero&) = delete;

 private:
#if defined(__SSE2__)
  using Mode = unsigned int;
  static constexpr Mode kFlushing = 0x8040;  // FTZ for results, DAZ for operands
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
