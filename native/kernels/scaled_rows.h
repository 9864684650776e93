// Scaled rows: rows done again in float64, scaled by a power of two where even float64 would
// overflow or underflow. The usual kernels leave to it the rare rows whose sums overflow, whose
// squares underflow, or that hold a NaN or an infinity.
#pragma once

// One row of an array.
template <class Stored>
struct RowOf {
  Stored* data;
  int64_t stride;
  Stored& operator[](int64_t col) const { return data[col * stride]; }
};

template <class Stored>
inline DoubleVector load_first_doubles(const Stored* from, int64_t count) {
  if (count == lanes<double>) return load_doubles(from);
  Stored padded[lanes<double>] = {};
  std::copy(from, from + count, padded);
  return load_doubles(padded);
}
template <class Stored>
inline void store_first_doubles(Stored* to, DoubleVector v, int64_t count) {
  if constexpr (sizeof(Stored) == 2) {
    const auto packed = to_stored(as_first_half(v), Stored{});
    if (count == lanes<double>)
      std::memcpy(to, &packed, lanes<double> * sizeof(Stored));  // one store
    else
      std::memcpy(to, &packed, static_cast<size_t>(count) * sizeof(Stored));
  } else if (count == lanes<double>) {
    store_doubles(to, v);
  } else {
    Stored rounded[lanes<double>];
    store_doubles(rounded, v);
    std::copy(rounded, rounded + count, to);
  }
}

// A total for each lane. Of floats, double holds sums with bits to spare.
template <class Stored>
struct ScaledTotal : LaneTotal<double> {
  void add(DoubleVector v) {
    if constexpr (sizeof(Stored) == sizeof(double))
      LaneTotal<double>::add(v);
    else
      total += v;
  }
};

// Sums term(step) over all steps; two sums in turns, so that an addition need not wait for the one
// before.
template <class Stored, class F>
LAYERNORM_INLINE LaneTotal<double> sum_over_steps(int64_t steps, F term) {
  ScaledTotal<Stored> even = {}, odd = {};
  int64_t step = 0;
  for (; step + 2 <= steps; step += 2) {
    even.add(term(step));
    odd.add(term(step + 1));
  }
  if (step < steps) even.add(term(step));
  LaneTotal<double> result = even;
  result.add(odd.total);
  result.error += odd.error;
  return result;
}

// The following two read and write vectors of doubles, step by step: along one contiguous row, or
// across neighboring rows, one in each lane. The arithmetic is written once, for both.
struct AlongRow {
  static constexpr int64_t W = lanes<double>;
  int64_t cols;

  int64_t steps() const { return (cols + W - 1) / W; }
  int64_t count(int64_t step) const { return std::min(W, cols - step * W); }
  template <class Stored>
  DoubleVector read(RowOf<const Stored> row, int64_t step) const {
    return load_first_doubles(row.data + step * W, count(step));
  }
  // `values` are in pack order.
  template <class Stored>
  DoubleVector parameter(const Compute<Stored>* values, int64_t step) const {
    constexpr int64_t size = pack_size<Stored>, parts = vectors_in_pack<Stored>;
    static_assert(size % W == 0 && W % parts == 0, "a step lies in one pack");
    const int64_t col = step * W;
    if (parts == 1 || col - col % size + size > cols)
      return load_first_doubles(values + col, count(step));
    Compute<Stored> in_order[W];
    for (int64_t k = 0; k < W; ++k)
      in_order[k] =
          values[position_in_row<Stored>(col, cols) + k % parts * (size / parts) + k / parts];
    return load_doubles(in_order);
  }
  // Zero past the row's end, where elements read as 0 would not stay 0.
  DoubleVector keep(DoubleVector v, int64_t step) const {
    return count(step) == W ? v : keep_first(v, count(step));
  }
  template <class Stored>
  void write(RowOf<Stored> row, int64_t step, DoubleVector value) const {
    store_first_doubles(row.data + step * W, value, count(step));
  }
  // The total of the row, in each lane.
  static DoubleVector total(const LaneTotal<double>& of_lanes, double beyond = 0) {
    return broadcast(of_lanes.sum(beyond));
  }
  static DoubleVector largest(DoubleVector of_lanes) {
    double result = 0;
    for (int64_t lane = 0; lane < W; ++lane)
      if (result == result && !(of_lanes[lane] <= result)) result = of_lanes[lane];
    return broadcast(result);
  }
};

struct AcrossRows {
  static constexpr int64_t W = lanes<double>;
  int64_t cols;
  int64_t rows;     // at most W
  uint32_t wanted;  // bit k: row k is written

  int64_t steps() const { return cols; }
  template <class Stored>
  DoubleVector read(RowOf<const Stored> first, int64_t step) const {
    return load_first_doubles(&first[step], rows);
  }
  template <class Stored>
  DoubleVector parameter(const Compute<Stored>* values, int64_t step) const {
    return broadcast(static_cast<double>(values[step]));
  }
  DoubleVector keep(DoubleVector v, int64_t) const { return v; }
  template <class Stored>
  void write(RowOf<Stored> first, int64_t step, DoubleVector value) const {
    Compute<Stored> rounded[W];
    store_doubles(rounded, value);
    for (int64_t lane = 0; lane < rows; ++lane)
      if (wanted >> lane & 1) (&first[step])[lane] = to_stored<Stored>(rounded[lane]);
  }
  static DoubleVector total(const LaneTotal<double>& of_lanes, double beyond = 0) {
    return (of_lanes.total - broadcast(beyond)) + of_lanes.error;
  }
  static DoubleVector largest(DoubleVector of_lanes) { return of_lanes; }
};

// The largest magnitude of each row; not finite where the row holds a NaN or an infinity.
template <class Rows, class Stored>
inline DoubleVector largest_magnitude(const Rows& rows, RowOf<const Stored> x) {
  DoubleVector largest = {}, special = {};
  for (int64_t step = 0; step < rows.steps(); ++step) {
    const DoubleVector v = magnitude(rows.read(x, step));
    special += v - v;
    largest = v > largest ? v : largest;
  }
  return Rows::largest(largest + special);
}

// The exponent that brings `largest` to [1, 2); 0 where double holds squares and products anyway.
template <class Stored>
inline int scaling_exponent(double largest) {
  if (sizeof(Stored) < sizeof(double) || !(largest > 0) || !std::isfinite(largest)) return 0;
  return largest > 0x1p-400 && largest < 0x1p400 ? 0 : std::ilogb(largest);
}

// A power of two for each lane, in two factors: one could overflow. Floats need none.
template <class Stored>
struct Scale {
  static constexpr int64_t W = lanes<double>;
  DoubleVector first, second;

  Scale() : first(broadcast(1.0)), second(broadcast(1.0)) {}
  explicit Scale(const int* exponent) : Scale() {
    if constexpr (sizeof(Stored) < sizeof(double)) return;
    for (int64_t lane = 0; lane < W; ++lane) {
      first[lane] = std::ldexp(1.0, exponent[lane] / 2);
      second[lane] = std::ldexp(1.0, exponent[lane] - exponent[lane] / 2);
    }
  }
  DoubleVector operator()(DoubleVector v) const {
    return sizeof(Stored) < sizeof(double) ? v : v * first * second;
  }
};

// The statistics of the rows in the lanes, times 2^-exponent.
template <class Stored>
struct ScaledStatistics {
  static constexpr int64_t W = lanes<double>;
  using C = Compute<Stored>;

  int exponent[W] = {};
  DoubleVector mean = {}, residual = {};
  DoubleVector rstd = {};  // 0 for a constant row with eps 0: its xhat is 0
  Scale<Stored> scale = {};

  void set_exponents(const int* exponents) {
    if constexpr (sizeof(Stored) < sizeof(double)) return;
    int down[W];
    for (int64_t lane = 0; lane < W; ++lane) {
      exponent[lane] = exponents[lane];
      down[lane] = -exponents[lane];
    }
    scale = Scale<Stored>(down);
  }
  DoubleVector normalized(DoubleVector x) const {
    if constexpr (sizeof(Stored) < sizeof(double)) return (x - mean) * rstd;
    return ((scale(x) - mean) - residual) * rstd;
  }
  // A row's ordinary statistics. A mean of floats needs no second part here.
  void take(const RowStatistics<C>& row, int64_t lane) {
    mean[lane] = static_cast<double>(row.mean);
    if constexpr (sizeof(Stored) < sizeof(double))
      mean[lane] += static_cast<double>(row.residual);
    else
      residual[lane] = row.residual;
    rstd[lane] = static_cast<double>(row.rstd);
  }
  bool all_are_nan() const {
    bool all = true;
    for (int64_t lane = 0; lane < W; ++lane) all = all && std::isnan(rstd[lane]);
    return all;
  }
  // One row's in all lanes.
  ScaledStatistics in_all_lanes(int64_t lane) const {
    ScaledStatistics result;
    int exponents[W];
    std::fill(exponents, exponents + W, exponent[lane]);
    result.set_exponents(exponents);
    result.mean = broadcast(mean[lane]);
    result.residual = broadcast(residual[lane]);
    result.rstd = broadcast(rstd[lane]);
    return result;
  }

  RowStatistics<C> unscaled(int64_t lane) const {
    RowStatistics<C> row;
    const double whole = std::ldexp(mean[lane], exponent[lane]);
    row.mean = static_cast<C>(whole);
    row.residual = static_cast<C>((whole - static_cast<double>(row.mean)) +
                                  std::ldexp(residual[lane], exponent[lane]));
    row.rstd = static_cast<C>(std::ldexp(rstd[lane], -exponent[lane]));
    row.ordinary = false;
    return row;
  }
};

inline bool any_finite(DoubleVector v) {
  bool any = false;
  for (int64_t lane = 0; lane < lanes<double>; ++lane) any = any || std::isfinite(v[lane]);
  return any;
}

template <class Stored, bool centered, class Rows>
ScaledStatistics<Stored> scaled_statistics(const Rows& rows, RowOf<const Stored> x, double eps) {
  constexpr int64_t W = lanes<double>;
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  ScaledStatistics<Stored> result;
  if constexpr (sizeof(Stored) == sizeof(double)) {
    const DoubleVector largest = largest_magnitude(rows, x);
    int exponent[W];
    for (int64_t lane = 0; lane < W; ++lane) {
      exponent[lane] = scaling_exponent<Stored>(largest[lane]);
      // Beside an eps that overflows when scaled, the variance vanishes: no scaling is needed.
      if (!(std::ldexp(eps, -2 * exponent[lane]) < 0x1p1000)) exponent[lane] = 0;
    }
    result.set_exponents(exponent);
  }
  const DoubleVector n = broadcast(static_cast<double>(rows.cols));
  const auto sum_over_row = [&](auto term) {
    return Rows::total(sum_over_steps<Stored>(
        rows.steps(), [&](int64_t step) { return term(result.scale(rows.read(x, step)), step); }));
  };
  if constexpr (centered) {
    const DoubleVector mean = sum_over_row([](DoubleVector v, int64_t) { return v; }) / n;
    if (!any_finite(mean)) {
      result.rstd = broadcast(nan);
      result.mean = result.residual = result.rstd;
      return result;
    }
    result.mean = mean;
    // Sums of floats in double need no second pass.
    if constexpr (sizeof(Stored) == sizeof(double)) {
      const DoubleVector residual =
          sum_over_row([&](DoubleVector v, int64_t step) { return rows.keep(v - mean, step); }) / n;
      result.mean = mean + residual;
      result.residual = two_sum_error(mean, residual, result.mean);
    }
  }
  const DoubleVector squares = sum_over_row([&](DoubleVector v, int64_t step) {
    const DoubleVector d = rows.keep((v - result.mean) - result.residual, step);
    return d * d;
  });
  const DoubleVector var = squares / n;
  DoubleVector scaled_eps;
  for (int64_t lane = 0; lane < W; ++lane)
    scaled_eps[lane] = std::ldexp(eps, -2 * result.exponent[lane]);
  const DoubleVector with_eps = var + scaled_eps;
  const DoubleVector low = division_error(squares, n) + two_sum_error(var, scaled_eps, with_eps);
  result.rstd = reciprocal_root(with_eps, low);
  int exponent[W];
  for (int64_t lane = 0; lane < W; ++lane) {
    exponent[lane] = result.exponent[lane];
    if (!std::isfinite(squares[lane])) {
      result.mean[lane] = result.residual[lane] = result.rstd[lane] = nan;
    } else if (squares[lane] == 0) {
      // A constant row: rstd depends on eps alone, which scaling could lose.
      result.mean[lane] = std::ldexp(result.mean[lane], exponent[lane]);
      result.residual[lane] = std::ldexp(result.residual[lane], exponent[lane]);
      result.rstd[lane] = eps > 0 ? 1 / std::sqrt(eps) : 0;
      exponent[lane] = 0;
    }
  }
  result.set_exponents(exponent);
  return result;
}

// A row that is NaN holds the same NaN whether its neighbors are NaN or not.
inline DoubleVector nan_where(DoubleVector is_nan, DoubleVector value) {
  const DoubleVector nan = broadcast(std::numeric_limits<double>::quiet_NaN());
  return is_nan == is_nan ? value : nan;
}

template <class Rows, class Stored>
void write_nan(const Rows& rows, RowOf<Stored> to) {
  const DoubleVector nan = broadcast(std::numeric_limits<double>::quiet_NaN());
  for (int64_t step = 0; step < rows.steps(); ++step) rows.write(to, step, nan);
}

// Writes y of the rows and returns their statistics.
template <class Stored, bool centered, class Rows>
ScaledStatistics<Stored> forward_scaled_rows(const Rows& rows, RowOf<const Stored> x,
                                             const Compute<Stored>* weight,
                                             const Compute<Stored>* bias, double eps,
                                             RowOf<Stored> y) {
  const auto statistics = scaled_statistics<Stored, centered>(rows, x, eps);
  if (statistics.all_are_nan()) {
    write_nan(rows, y);
    return statistics;
  }
  for (int64_t step = 0; step < rows.steps(); ++step) {
    DoubleVector value = statistics.normalized(rows.read(x, step));
    if (weight) value *= rows.template parameter<Stored>(weight, step);
    if (bias) value += rows.template parameter<Stored>(bias, step);
    rows.write(y, step, nan_where(statistics.rstd, value));
  }
  return statistics;
}

// Outside this range rstd is too close to the limits of the compute type for full precision.
inline bool is_ordinary_rstd(float rstd) { return rstd > 0x1p-64f && rstd < 0x1p64f; }
inline bool is_ordinary_rstd(double rstd) { return rstd > 0x1p-500 && rstd < 0x1p500; }

// One row's ordinary statistics, in all lanes.
template <class Stored>
ScaledStatistics<Stored> without_scale(const RowStatistics<Compute<Stored>>& saved) {
  ScaledStatistics<Stored> result;
  result.take(saved, 0);
  return result.in_all_lanes(0);
}

// Of `count` rows. What the forward has saved is used where it is ordinary.
template <class Stored, bool centered, class Rows>
ScaledStatistics<Stored> scaled_statistics_from(const RowStatistics<Compute<Stored>>* saved,
                                                int64_t count, const Rows& rows,
                                                RowOf<const Stored> x, double eps) {
  ScaledStatistics<Stored> result;
  bool ordinary = true;
  for (int64_t k = 0; k < count; ++k) ordinary = ordinary && is_ordinary_rstd(saved[k].rstd);
  if (!ordinary) result = scaled_statistics<Stored, centered>(rows, x, std::isnan(eps) ? 0 : eps);
  int exponent[lanes<double>];
  for (int64_t lane = 0; lane < lanes<double>; ++lane) {
    const auto& from = saved[std::min(lane, count - 1)];
    exponent[lane] = result.exponent[lane];
    if (!is_ordinary_rstd(from.rstd)) continue;
    exponent[lane] = 0;
    result.take(from, lane);
  }
  result.set_exponents(exponent);
  return result;
}

// To the compute type and back.
template <class C>
inline DoubleVector rounded(DoubleVector v) {
  return sizeof(C) == sizeof(double) ? v : first_half_as_doubles(as_first_half(v));
}

// Writes dx, plus dtotal unless that is null.
template <class Stored, bool centered, class Rows>
void backward_scaled_rows(const Rows& rows, const ScaledStatistics<Stored>& statistics,
                          RowOf<const Stored> x, RowOf<const Stored> dy,
                          const Compute<Stored>* weight, RowOf<const Stored> dtotal,
                          RowOf<Stored> dx, double eps) {
  using C = Compute<Stored>;
  constexpr int64_t W = lanes<double>;
  if (statistics.all_are_nan()) return write_nan(rows, dx);
  const DoubleVector largest = largest_magnitude(rows, dy);
  if (!any_finite(largest)) return write_nan(rows, dx);
  int down[W] = {}, weight_down[W] = {}, up[W] = {};
  if constexpr (sizeof(Stored) == sizeof(double)) {
    int weight_exponent = 0;
    if (weight)
      weight_exponent =
          scaling_exponent<C>(largest_magnitude(AlongRow{rows.cols}, RowOf<const C>{weight, 1})[0]);
    for (int64_t lane = 0; lane < W; ++lane) {
      down[lane] = -scaling_exponent<Stored>(largest[lane]);
      weight_down[lane] = -weight_exponent;
      up[lane] = weight_exponent - down[lane] - statistics.exponent[lane];
    }
  }
  const Scale<Stored> of_dy(down), of_weight(weight_down), of_dx(up);
  const auto g = [&](int64_t step) {
    DoubleVector value = of_dy(rows.read(dy, step));
    if (weight) value *= of_weight(rows.template parameter<Stored>(weight, step));
    return value;
  };
  const auto xhat = [&](int64_t step) {
    return rows.keep(statistics.normalized(rows.read(x, step)), step);
  };
  ScaledTotal<Stored> total_g = {}, total_g_xhat = {}, total_squares = {};
  for (int64_t step = 0; step < rows.steps(); ++step) {
    const DoubleVector g_here = g(step), xhat_here = xhat(step);
    if constexpr (centered) total_g.add(g_here);
    total_g_xhat.add(g_here * xhat_here);
    total_squares.add(xhat_here * xhat_here);
  }
  const double n = static_cast<double>(rows.cols);
  const DoubleVector mean_g = Rows::total(total_g) / broadcast(n);
  const DoubleVector g_xhat = Rows::total(total_g_xhat);
  const DoubleVector squares_beyond_n = Rows::total(total_squares, n);
  DoubleVector slope, rstd = statistics.rstd;
  for (int64_t lane = 0; lane < W; ++lane) {
    slope[lane] = slope_along_xhat<C>(g_xhat[lane], squares_beyond_n[lane], rstd[lane],
                                      std::ldexp(eps, -2 * statistics.exponent[lane]), n);
    // An infinity in dy makes the whole row NaN, as one in x does.
    if (!std::isfinite(largest[lane])) rstd[lane] = std::numeric_limits<double>::quiet_NaN();
  }
  for (int64_t step = 0; step < rows.steps(); ++step) {
    DoubleVector value = of_dx(fma(g(step) - mean_g, rstd, -xhat(step) * slope));
    if (dtotal.data) value = rounded<C>(value) + rows.read(dtotal, step);
    rows.write(dx, step, nan_where(rstd, value));
  }
}
