// The choices of a caller, in all combinations or at random.
#pragma once

#include "layer.h"

namespace layernorm::test {

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
