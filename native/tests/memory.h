// An operator new that can be made to fail. Included once in a program.
#pragma once

#include <cstdlib>
#include <new>

namespace layernorm::test {

inline thread_local bool has_memory = true;

}  // namespace layernorm::test

void* operator new(size_t bytes) {
  void* memory = layernorm::test::has_memory ? std::malloc(bytes) : nullptr;
  if (!memory) throw std::bad_alloc();
  return memory;
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return layernorm::test::has_memory ? std::malloc(bytes) : nullptr;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

// Those of arrays call these by default, but not with the sanitizers.
void* operator new[](size_t bytes) { return operator new(bytes); }
void* operator new[](size_t bytes, const std::nothrow_t& nothrow) noexcept {
  return operator new(bytes, nothrow);
}
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
