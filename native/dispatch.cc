// Chooses the instruction set, once: the best that the processor and the operating system support,
// or a lower one that LAYERNORM_ISA names.
#include <atomic>
#include <optional>
#include <string>

#include "environment.h"
#include "kernels/kernels.h"

#if defined(LAYERNORM_X86_64)
#include <cpuid.h>
#endif

namespace layernorm {
namespace {

constexpr int kMostIsas = 3;

#if defined(LAYERNORM_X86_64)
// What the processor has and the operating system keeps when it switches threads. Asked here: what
// __builtin_cpu_supports() says depends on a runtime library, and one of them always says no.
struct Processor {
  bool avx2 = false, avx512 = false;

  Processor() {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return;
    constexpr unsigned fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    if (!has_all(ecx, fma | osxsave | avx | f16c)) return;
    unsigned kept, upper_half;
    __asm__("xgetbv" : "=a"(kept), "=d"(upper_half) : "c"(0));
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return;
    constexpr unsigned ymm = 0x6, zmm = 0xe6;  // with the registers below, and those of masks
    constexpr unsigned of_avx2 = 1u << 5;
    constexpr unsigned f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31;
    avx2 = has_all(kept, ymm) && has_all(ebx, of_avx2);
    avx512 = avx2 && has_all(kept, zmm) && has_all(ebx, f | dq | bw | vl);
  }
  static bool has_all(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }
};
#endif

struct Available {
  const Kernels* kernels[kMostIsas];
  int count = 0;

  Available() {
    kernels[count++] = &kernels_baseline;
#if defined(LAYERNORM_X86_64)
    const Processor processor;
    if (processor.avx2) kernels[count++] = &kernels_avx2;
    if (processor.avx512) kernels[count++] = &kernels_avx512;
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
