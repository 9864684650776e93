// Scalar rows: the row done again in float64, element by element, scaled by a power of two where
// even float64 would overflow or underflow. The vector kernels leave to it the rare rows whose sums
// overflow, whose squares underflow, or that hold a NaN or an infinity.
#pragma once

// One row of an array.
template <class Stored>
struct RowOf {
  Stored* data;
  int64_t stride;
  Stored& operator[](int64_t col) const { return data[col * stride]; }
};

class CompensatedSum {
 public:
  void add(double value) { add_compensated(high_, low_, value); }
  double value(double beyond = 0) const { return (high_ - beyond) + low_; }

 private:
  double high_ = 0, low_ = 0;
};

// The row times 2^-exponent has this mean and rstd.
struct ScalarStatistics {
  int exponent;
  double mean, residual;
  double rstd;  // 0 for a constant row with eps 0: its xhat is 0

  double normalized(double x) const {
    return ((std::ldexp(x, -exponent) - mean) - residual) * rstd;
  }
};

template <class Stored>
inline double largest_magnitude(RowOf<const Stored> row, int64_t cols) {
  double largest = 0;
  for (int64_t col = 0; col < cols; ++col) {
    const double magnitude = std::fabs(static_cast<double>(to_compute(row[col])));
    if (!(magnitude <= largest)) largest = magnitude;
    if (magnitude != magnitude) break;
  }
  return largest;
}

// The exponent that brings `largest` to [1, 2); 0 where double holds squares and products anyway.
template <class Stored>
inline int scaling_exponent(double largest) {
  if (sizeof(Stored) < sizeof(double) || !(largest > 0) || !std::isfinite(largest)) return 0;
  return largest > 0x1p-400 && largest < 0x1p400 ? 0 : std::ilogb(largest);
}

template <class Stored, bool centered>
ScalarStatistics scalar_statistics(RowOf<const Stored> x, int64_t cols, double eps) {
  const double largest = largest_magnitude(x, cols);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  if (!std::isfinite(largest)) return {0, nan, nan, nan};
  ScalarStatistics row = {scaling_exponent<Stored>(largest), 0, 0, 0};
  // Beside an eps that overflows when scaled, the variance vanishes: no scaling is needed.
  if (!(std::ldexp(eps, -2 * row.exponent) < 0x1p1000)) row.exponent = 0;
  const auto scaled = [&](int64_t col) {
    return std::ldexp(static_cast<double>(to_compute(x[col])), -row.exponent);
  };
  const double n = static_cast<double>(cols);
  if constexpr (centered) {
    CompensatedSum sum;
    for (int64_t col = 0; col < cols; ++col) sum.add(scaled(col));
    row.mean = sum.value() / n;
    CompensatedSum rest;
    for (int64_t col = 0; col < cols; ++col) rest.add(scaled(col) - row.mean);
    const double residual = rest.value() / n;
    const double mean = row.mean + residual;
    row.residual = two_sum_error(row.mean, residual, mean);
    row.mean = mean;
  }
  CompensatedSum squares;
  for (int64_t col = 0; col < cols; ++col) {
    const double d = (scaled(col) - row.mean) - row.residual;
    squares.add(d * d);
  }
  if (squares.value() == 0)  // a constant row: rstd depends on eps alone, which scaling could lose
    return {0, std::ldexp(row.mean, row.exponent), std::ldexp(row.residual, row.exponent),
            eps > 0 ? 1 / std::sqrt(eps) : 0};
  const double var = squares.value() / n, scaled_eps = std::ldexp(eps, -2 * row.exponent);
  const double with_eps = var + scaled_eps;
  const DoubleVector low = division_error(broadcast(squares.value()), broadcast(n)) +
                           broadcast(two_sum_error(var, scaled_eps, with_eps));
  row.rstd = reciprocal_root(broadcast(with_eps), low)[0];
  return row;
}

template <class Stored, bool centered>
RowStatistics<Compute<Stored>> forward_scalar_row(RowOf<const Stored> x,
                                                  const Compute<Stored>* weight,
                                                  const Compute<Stored>* bias, double eps,
                                                  RowOf<Stored> y, int64_t cols) {
  using C = Compute<Stored>;
  const ScalarStatistics scalar = scalar_statistics<Stored, centered>(x, cols, eps);
  for (int64_t col = 0; col < cols; ++col) {
    double value = scalar.normalized(static_cast<double>(to_compute(x[col])));
    if (weight) value *= static_cast<double>(weight[col]);
    if (bias) value += static_cast<double>(bias[col]);
    y[col] = to_stored<Stored>(static_cast<C>(value));
  }
  RowStatistics<C> row;
  const double mean = std::ldexp(scalar.mean, scalar.exponent);
  row.mean = static_cast<C>(mean);
  row.residual = static_cast<C>((mean - static_cast<double>(row.mean)) +
                                std::ldexp(scalar.residual, scalar.exponent));
  row.rstd = static_cast<C>(std::ldexp(scalar.rstd, -scalar.exponent));
  row.ordinary = false;
  return row;
}

// Outside this range rstd is too close to the limits of the compute type for full precision.
inline bool is_ordinary_rstd(float rstd) { return rstd > 0x1p-64f && rstd < 0x1p64f; }
inline bool is_ordinary_rstd(double rstd) { return rstd > 0x1p-500 && rstd < 0x1p500; }

template <class Stored, bool centered>
ScalarStatistics scalar_statistics_from(const RowStatistics<Compute<Stored>>& saved,
                                        RowOf<const Stored> x, int64_t cols, double eps) {
  if (!is_ordinary_rstd(saved.rstd))
    return scalar_statistics<Stored, centered>(x, cols, std::isnan(eps) ? 0 : eps);
  return {0, static_cast<double>(saved.mean), static_cast<double>(saved.residual),
          static_cast<double>(saved.rstd)};
}

template <class Stored, bool centered>
void backward_scalar_row(const ScalarStatistics& row, RowOf<const Stored> x, RowOf<const Stored> dy,
                         const Compute<Stored>* weight, RowOf<Stored> dx, int64_t cols,
                         double eps) {
  using C = Compute<Stored>;
  const double largest = largest_magnitude(dy, cols);
  const int dy_exponent = scaling_exponent<Stored>(largest);
  int weight_exponent = 0;
  if (weight)
    weight_exponent = scaling_exponent<C>(largest_magnitude(RowOf<const C>{weight, 1}, cols));
  const auto g = [&](int64_t col) {
    double value = std::ldexp(static_cast<double>(to_compute(dy[col])), -dy_exponent);
    if (weight) value *= std::ldexp(static_cast<double>(weight[col]), -weight_exponent);
    return value;
  };
  const auto xhat = [&](int64_t col) {
    return row.normalized(static_cast<double>(to_compute(x[col])));
  };
  CompensatedSum sum_g, sum_g_xhat, sum_squares;
  for (int64_t col = 0; col < cols; ++col) {
    if constexpr (centered) sum_g.add(g(col));
    sum_g_xhat.add(g(col) * xhat(col));
    sum_squares.add(xhat(col) * xhat(col));
  }
  const double n = static_cast<double>(cols);
  const double mean_g = sum_g.value() / n;
  const double slope = slope_along_xhat<C>(sum_g_xhat.value(), sum_squares.value(n), row.rstd,
                                           std::ldexp(eps, -2 * row.exponent), n);
  // An infinity in dy makes the whole row NaN, as one in x does.
  const double rstd = std::isfinite(largest) ? row.rstd : std::numeric_limits<double>::quiet_NaN();
  const int exponent = dy_exponent + weight_exponent - row.exponent;
  for (int64_t col = 0; col < cols; ++col) {
    const double value = fma(g(col) - mean_g, rstd, -xhat(col) * slope);
    dx[col] = to_stored<Stored>(static_cast<C>(std::ldexp(value, exponent)));
  }
}
