// How far a result is from the exact one, in ulp: docs/specification.md, "Accuracy".
#pragma once

#include <algorithm>

#include "numbers.h"

namespace layernorm::test {

struct Bounds {
  Real y, dx, parameter;
};

inline Bounds bounds_of(DataType type) {
  switch (type) {
    case DataType::float32: return {5, 5, 4};
    case DataType::float64: return {5, 5, 5};
    default: return {0.51L, 5, 4};
  }
}

// Infinite where exactly one of the two is NaN, 0 where both are. An infinite result counts as the
// number that would follow the largest one.
inline Real distance(Real result, Real exact, DataType type) {
  if (std::isnan(result) && std::isnan(exact)) return 0;
  if (std::isnan(result) || std::isnan(exact)) return std::numeric_limits<Real>::infinity();
  if (result == exact) return 0;
  if (std::isinf(result)) {
    const Real next = std::max(power_of_two(format_of(type).max_exponent), std::fabs(exact));
    result = std::copysign(next, result);
  }
  return std::fabs(result - exact);
}

// Ignores the last rounding: the distance to the nearest number that rounds to the result.
inline Real distance_before_rounding(Real result, Real exact, DataType type) {
  const Real whole = distance(result, exact, type);
  if (whole == 0 || !std::isfinite(whole)) return whole;
  Real magnitude = std::fabs(result);
  if (std::isinf(magnitude)) magnitude = power_of_two(format_of(type).max_exponent);
  // Numbers just below a power of two are closer to each other.
  const bool from_below = std::fabs(exact) < magnitude;
  const Real unit =
      from_below ? ulp(magnitude * (1 - power_of_two(-60)), type) : ulp(magnitude, type);
  return std::max(Real{0}, whole - unit / 2);
}

}  // namespace layernorm::test
