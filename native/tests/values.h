// Rows of numbers, each kind hard in one way.
#pragma once

#include <algorithm>
#include <vector>

#include "numbers.h"
#include "random.h"

namespace layernorm::test {

enum class Values {
  ordinary,
  off_zero,
  mean_1e4,
  mean_2_to_20,
  near_largest,           // squares overflow, and x - mean may
  near_largest_one_sign,  // a sum of three overflows
  smallest_normals,
  subnormals,
  constant,
  outlier,
  first_is_outlier,  // the first guess of the mean is far off
  two_neighbors,     // two adjacent numbers: the variance is all rounding
  zeros,
  one_nan,
  one_infinity,
  mixed,       // one row of each finite kind in turn
  equal_rows,  // the rounding errors of a sum over the rows all have one sign
};
constexpr int kFiniteKinds = static_cast<int>(Values::one_nan);

inline const char* name_of(Values values) {
  static const char* const names[] = {
      "ordinary",      "off_zero",         "mean_1e4",   "mean_2_to_20", "near_largest",
      "largest_alike", "smallest_normals", "subnormals", "constant",     "outlier",
      "first_outlier", "two_neighbors",    "zeros",      "one_nan",      "one_infinity",
      "mixed",         "equal_rows"};
  return names[static_cast<int>(values)];
}

// One row, not yet rounded to the type, but within its range.
inline void fill_row(Values values, DataType type, int64_t row, Random& random,
                     std::vector<Real>& to) {
  if (to.empty()) return;
  if (values == Values::mixed) values = static_cast<Values>(row % kFiniteKinds);
  const Real limit = largest(type);
  const Real sign = row % 2 ? -1 : 1;
  const auto cols = static_cast<int64_t>(to.size());
  const Real constants[] = {0.1L, -3, 1.0L / 3, limit, -smallest(type), 60000};
  const Real constant = constants[random.below(6)];
  const Real neighbor = rounded(sign * (1 + random.uniform()), type);
  for (Real& x : to) {
    const Real normal = random.normal(), uniform = random.uniform();
    switch (values) {
      case Values::off_zero: x = normal + 0.5L; break;
      case Values::mean_1e4: x = sign * 1e4L + normal; break;
      case Values::mean_2_to_20: x = sign * std::min(limit / 8, 1048576.0L) + normal; break;
      case Values::near_largest: x = (2 * uniform - 1) * limit; break;
      case Values::near_largest_one_sign: x = sign * (1 + uniform) / 2 * limit; break;
      case Values::smallest_normals: x = 4 * normal * smallest_normal(type); break;
      case Values::subnormals: x = std::floor(200 * uniform - 100) * smallest(type); break;
      case Values::constant: x = constant; break;
      case Values::two_neighbors: x = neighbor + (uniform < 0.5L ? 0 : ulp(neighbor, type)); break;
      case Values::zeros: x = 0; break;
      default: x = normal; break;
    }
  }
  Real& one = to[static_cast<size_t>(random.below(cols))];
  if (values == Values::equal_rows)
    for (int64_t col = 0; col < cols; ++col)
      to[static_cast<size_t>(col)] = 0.1L * static_cast<Real>(col + 1);
  if (values == Values::outlier) one = 1e4L;
  if (values == Values::first_is_outlier) to[0] = 3e4L;
  if (values == Values::one_nan) one = std::numeric_limits<Real>::quiet_NaN();
  if (values == Values::one_infinity) one = sign * std::numeric_limits<Real>::infinity();
}

}  // namespace layernorm::test
