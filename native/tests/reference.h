// The definition of docs/specification.md, in long double.
#pragma once

#include <algorithm>
#include <vector>

#include "numbers.h"

namespace layernorm::test {

using Row = std::vector<Real>;

inline Real mean_of(const Row& row) {
  Real sum = 0;
  for (const Real value : row) sum += value;
  return sum / static_cast<Real>(row.size());
}

struct NormalizedRow {
  Real mean, rstd;  // rstd: infinite where variance and eps are both 0; xhat is 0 then
  Real deviation;   // sqrt(variance)
  Row xhat;
  bool constant;  // all elements equal; without centering: all zero

  bool is_finite() const { return !std::isnan(deviation); }
  Real scale(size_t col) const { return std::max(Real{1}, std::fabs(xhat[col])); }
};

inline NormalizedRow normalize(const Row& x, bool centered, Real eps) {
  const Real nan = std::numeric_limits<Real>::quiet_NaN();
  for (const Real value : x)
    if (!std::isfinite(value)) return {nan, nan, nan, Row(x.size(), nan), false};
  NormalizedRow row = {0, 0, 0, x, true};
  const Real center = centered ? x[0] : 0;
  for (const Real value : x) row.constant = row.constant && value == center;
  if (row.constant) {
    row.mean = center;
    row.xhat.assign(x.size(), 0);
  } else if (centered) {
    // Twice: the second mean corrects the rounding of the first.
    const Real near = mean_of(x);
    for (Real& value : row.xhat) value -= near;
    const Real rest = mean_of(row.xhat);
    for (Real& value : row.xhat) value -= rest;
    row.mean = near + rest;
  }
  Real squares = 0;
  for (const Real value : row.xhat) squares += value * value;
  const Real variance = squares / static_cast<Real>(x.size());
  row.deviation = std::sqrt(variance);
  row.rstd = 1 / std::sqrt(variance + eps);
  if (!row.constant)
    for (Real& value : row.xhat) value *= row.rstd;
  return row;
}

// dx = rstd * (g - mean(g) - xhat * mean(g * xhat))
inline Row gradient(const NormalizedRow& row, const Row& g, bool centered) {
  const Real mean_g = centered ? mean_of(g) : 0;
  Row products = g;
  for (size_t col = 0; col < g.size(); ++col) products[col] *= row.xhat[col];
  const Real mean_g_xhat = mean_of(products);
  Row dx = g;
  for (size_t col = 0; col < g.size(); ++col)
    dx[col] = row.rstd * (g[col] - mean_g - row.xhat[col] * mean_g_xhat);
  return dx;
}

}  // namespace layernorm::test
