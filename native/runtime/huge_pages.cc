#include "huge_pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace layernorm {

// Smaller results mostly reuse memory.
[[maybe_unused]] constexpr int64_t kLargeBytes = 4 * 1024 * 1024;

void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  if (!data || bytes < kLargeBytes) return;
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end =
      (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace layernorm
