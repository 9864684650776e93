// Loads and stores of a vector's first lanes, with a number that the compiler knows: it may then
// choose another instruction, and Clang 22 chose one that stores too much. Compiled for each
// instruction set.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "check.h"

namespace layernorm {
namespace {

#include "kernels/simd.h"

// On its own, so that the conversion and the store may become one instruction.
template <class Stored, size_t count>
__attribute__((noinline)) void store_count(Stored* to, Vector<Compute<Stored>> v) {
  store_first(to, v, count);
}

template <class Stored, size_t count>
void test_first(const char* type) {
  constexpr size_t all = lanes<Compute<Stored>>;
  Vector<Compute<Stored>> v;
  for (size_t lane = 0; lane < all; ++lane)
    v[lane] = static_cast<Compute<Stored>>(static_cast<int>(lane) + 1);
  Stored whole[all], first[all], again[all];
  store(whole, v);
  std::memset(first, 0xa5, sizeof(first));
  store_count<Stored, count>(first, v);
  CHECK(std::memcmp(first, whole, count * sizeof(Stored)) == 0, "%s: stored %zu wrong", type,
        count);
  const auto* const bytes = reinterpret_cast<const unsigned char*>(first);
  CHECK(std::all_of(bytes + count * sizeof(Stored), bytes + sizeof(first),
                    [](unsigned char byte) { return byte == 0xa5; }),
        "%s: stored more than %zu", type, count);
  const Vector<Compute<Stored>> loaded = load_first(first, count);
  store(again, loaded);
  std::fill(whole + count, whole + all, Stored{});
  CHECK(std::memcmp(again, whole, sizeof(whole)) == 0, "%s: loaded %zu wrong", type, count);
}

template <class Stored, size_t... counts>
void test_each(const char* type, std::index_sequence<counts...>) {
  (test_first<Stored, counts + 1>(type), ...);
}

template <class Stored>
void test_type(const char* type) {
  test_each<Stored>(type, std::make_index_sequence<lanes<Compute<Stored>> - 1>());
}

bool processor_has_this() {
#define LAYERNORM_TEXT_OF(name) #name
#define LAYERNORM_TEXT(macro) LAYERNORM_TEXT_OF(macro)
  for (int index = 0; index < available_isa_count(); ++index)
    if (std::strcmp(available_isa(index), LAYERNORM_TEXT(LAYERNORM_ISA)) == 0) return true;
  std::printf("this processor lacks %s\n", LAYERNORM_TEXT(LAYERNORM_ISA));
  return false;
}

}  // namespace
}  // namespace layernorm

int main() {
  using namespace layernorm;
  if (!processor_has_this()) return 0;
  test_type<float>("float32");
  test_type<double>("float64");
  test_type<bfloat16>("bfloat16");
  test_type<float16>("float16");
  return test::finish();
}
