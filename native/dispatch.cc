// Chooses the instruction set, once: the best that the processor and the operating system support,
// or a lower one that LAYERNORM_ISA names.
#include <atomic>
#include <optional>
#include <string>

#include "environment.h"
#include "kernels/kernels.h"

namespace layernorm {
namespace {

constexpr int kMostIsas = 3;

struct Available {
  const Kernels* kernels[kMostIsas];
  int count = 0;

  Available() {
    kernels[count++] = &kernels_baseline;
#if defined(LAYERNORM_X86_64)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    if (avx2) kernels[count++] = &kernels_avx2;
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      kernels[count++] = &kernels_avx512;
#endif
  }
};

const Available& available() {
  static const Available result;
  return result;
}

const Kernels& choose() {
  const Available& all = available();
  const Kernels& best = *all.kernels[all.count - 1];
  constexpr const char* kName = "LAYERNORM_ISA";
  const std::optional<std::string> wanted = environment::text_of(kName);
  if (!wanted) return best;
  std::string names;
  for (int index = 0; index < all.count; ++index) {
    if (*wanted == all.kernels[index]->name) return *all.kernels[index];
    names += std::string(index ? ", " : "") + all.kernels[index]->name;
  }
  static std::atomic<bool> told{false};
  environment::tell_once(told, kName, *wanted, "one that this processor has (" + names + ")",
                         std::string("the best, ") + best.name + ",");
  return best;
}

}  // namespace

const Kernels& chosen_kernels() {
  static const Kernels& result = choose();
  return result;
}

const char* chosen_isa() { return chosen_kernels().name; }
int available_isa_count() { return available().count; }
const char* available_isa(int index) { return available().kernels[index]->name; }

}  // namespace layernorm
