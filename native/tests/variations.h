// The choices of a caller, in all combinations or at random.
#pragma once

#include <algorithm>
#include <cstdlib>

#include "layer.h"

#if defined(__has_feature)
#define LAYERNORM_TEST_HAS_FEATURE(name) __has_feature(name)
#else
#define LAYERNORM_TEST_HAS_FEATURE(name) 0
#endif

namespace layernorm::test {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
    LAYERNORM_TEST_HAS_FEATURE(address_sanitizer) || LAYERNORM_TEST_HAS_FEATURE(thread_sanitizer)
constexpr int kDefaultEvery = 3;
#else
constexpr int kDefaultEvery = 1;
#endif

// One case in so many runs: under a sanitizer, which takes long and judges memory more than numbers,
// and as LAYERNORM_EVERY says, for instance on an emulated processor.
inline int every() {
  static const int result = [] {
    const char* given = std::getenv("LAYERNORM_EVERY");
    return given ? std::max(1, std::atoi(given)) : kDefaultEvery;
  }();
  return result;
}

// Whether the case with this seed is one of those that run. Not decided by Random(seed), whose first
// number says where the case has its x.
inline bool is_taken(uint64_t seed) { return Random(~seed).below(every()) == 0; }

struct Types {
  DataType type, parameter_type;
};
constexpr Types kTypes[] = {
    {DataType::float32, DataType::float32},   {DataType::float64, DataType::float64},
    {DataType::bfloat16, DataType::bfloat16}, {DataType::bfloat16, DataType::float32},
    {DataType::float16, DataType::float16},   {DataType::float16, DataType::float32},
};

// Calls f with a case of each pair of types, for layer norm and for RMS norm.
template <class F>
void for_each_kind(F f) {
  for (const Types& types : kTypes)
    for (const bool centered : {true, false}) {
      Case given;
      given.type = types.type;
      given.parameter_type = types.parameter_type;
      given.centered = centered;
      f(given);
    }
}

// Calls f with fewer of them, for large arrays: each type for both norms, each pair of types for one.
template <class F>
void for_each_large_kind(F f) {
  for_each_kind([&](const Case& given) {
    const bool is_16_bit = size_of(given.type) == 2;
    if (!is_16_bit || given.centered == (given.type == given.parameter_type)) f(given);
  });
}

inline void vary_parameters(Case& given, Random& random) {
  given.has_weight = random.below(4) > 0;
  given.zero_centered_weight = given.has_weight && random.below(3) == 0;
  given.has_bias = random.below(4) > 0;
}

inline void vary_wanted(Case& given, Random& random) {
  given.wants_dx = random.below(8) > 0;
  given.wants_dweight = random.below(4) > 0;
  given.wants_dbias = random.below(4) > 0;
  given.saves_residual = random.below(4) > 0;
  given.gives_residual = random.below(4) > 0;
  if (!given.centered) given.saves_mean = given.saves_residual = random.coin();
}

inline void vary_memory(Case& given, Random& random) {
  given.x_layout = static_cast<Layout>(random.below(5));
  given.dy_layout = static_cast<Layout>(random.below(5));
  given.output_layout = static_cast<Layout>(random.below(4));
  given.dx_in_x = random.coin();
  given.in_place = random.below(4) == 0 && given.x_layout != Layout::broadcast &&
                   given.dy_layout != Layout::broadcast;
  if (given.in_place) given.wants_dx = true;
}

}  // namespace layernorm::test
