// CHECK counts failures and prints them; main returns finish().
#pragma once

#include <atomic>
#include <cstdarg>
#include <cstdio>

#include "layer_norm.h"

namespace layernorm::test {

inline std::atomic<int> failures{0};
inline std::atomic<int64_t> checks{0};

inline bool holds(bool condition) {
  checks.fetch_add(1, std::memory_order_relaxed);
  return condition;
}

// Prints the first few failures: one mistake can cause thousands.
__attribute__((format(printf, 1, 2))) inline void fail(const char* format, ...) {
  constexpr int kMostShown = 20;
  if (failures.fetch_add(1) >= kMostShown) return;
  std::va_list arguments;
  va_start(arguments, format);
  std::fprintf(stderr, "FAILED: ");
  std::vfprintf(stderr, format, arguments);
  std::fprintf(stderr, "\n");
  va_end(arguments);
}

inline int finish() {
  std::printf("%s: %lld checks, %d failed\n", chosen_isa(), static_cast<long long>(checks.load()),
              failures.load());
  // A program that checked nothing fails.
  return failures.load() == 0 && checks.load() > 0 ? 0 : 1;
}

}  // namespace layernorm::test

// CHECK(condition, format, ...) is a macro so that the text is built only on failure.
#define CHECK(condition, ...)                                                   \
  do {                                                                          \
    if (!layernorm::test::holds(condition)) layernorm::test::fail(__VA_ARGS__); \
  } while (false)
