// Scaled rows: rows done again with x, and with g = dy * weight, times powers of two that bring them
// to the middle of their type's range. The usual kernels leave to it the rare rows whose sums
// overflow, whose squares underflow, or that hold a NaN or an infinity.
#pragma once

// Turns x into xhat, as the statistics of x * scale have it.
template <class C>
struct ScaledNormalizer {
  Vector<C> scale;
  Normalizer<C> normalizer;

  template <bool centered>
  Vector<C> normalized(Vector<C> x) const {
    return normalizer.template normalized<centered>(x * scale);
  }
};

// The same of one row, in double.
struct NormalizerInDouble {
  double scale, mean, residual, rstd;

  DoubleVector operator()(DoubleVector x) const {
    const DoubleVector d = (x * broadcast(scale) - broadcast(mean)) - broadcast(residual);
    return d * broadcast(rstd);
  }
};

// The statistics of x * scale, where scale is 2^-exponent; of a constant row, xhat of which is 0,
// scale is 0 and the exponent that of rstd alone.
template <class Stored>
struct ScaledStatistics {
  using C = Compute<Stored>;
  static constexpr int64_t W = lanes<C>;

  alignas(64) C scale[W], mean[W], residual[W], rstd[W];
  int exponent[W];               // of the rows alone, as the next
  RowStatistics<C> unscaled[W];  // of x itself

  ScaledNormalizer<C> normalizer() const {
    return {load(scale), {load(mean), load(residual), load(rstd)}};
  }
  // Those of a row of x.
  void take(int64_t lane, const RowStatistics<C>& row, int of_scale) {
    exponent[lane] = of_scale;
    scale[lane] = power_of_two<C>(-of_scale);
    mean[lane] = row.mean * scale[lane];
    residual[lane] = row.residual * scale[lane];
    rstd[lane] = row.rstd * power_of_two<C>(of_scale);
  }
  // Those of a row of x * scale, whose scale and exponent are there.
  void put(int64_t lane, const RowStatistics<C>& row) {
    mean[lane] = row.mean;
    residual[lane] = row.residual;
    rstd[lane] = row.rstd;
    const auto up = [&](C value) {
      return times_power(static_cast<double>(value), exponent[lane]);
    };
    const double whole = up(row.mean);
    const C rounded = static_cast<C>(whole);
    const double rest = (whole - static_cast<double>(rounded)) + up(row.residual);
    const double of_x = times_power(static_cast<double>(row.rstd), -exponent[lane]);
    unscaled[lane] = {rounded, static_cast<C>(rest), static_cast<C>(of_x), false};
  }
  void put_nan(int64_t lane) {
    constexpr C nan = std::numeric_limits<C>::quiet_NaN();
    unscaled[lane] = {nan, nan, nan, false};
    take(lane, unscaled[lane], 0);
  }
  // rstd depends on eps alone, which the scale of x could lose.
  void put_constant(int64_t lane, const RowStatistics<C>& row, double eps) {
    put(lane, row);
    const int of_eps = eps > 0 ? exponent_of(eps) / 2 : 0;
    const double root = eps > 0 ? 1 / std::sqrt(times_power(eps, -2 * of_eps)) : 0;
    scale[lane] = mean[lane] = residual[lane] = 0;
    rstd[lane] = static_cast<C>(root);
    exponent[lane] = of_eps;
    unscaled[lane].rstd = static_cast<C>(times_power(root, -of_eps));
  }
  template <class Rows>
  void spread(const Rows& rows) {
    for (C* each : {scale, mean, residual, rstd}) rows.spread(each);
  }
  NormalizerInDouble in_double() const {
    const auto convert = [](C value) { return static_cast<double>(value); };
    return {convert(scale[0]), convert(mean[0]), convert(residual[0]), convert(rstd[0])};
  }
};

template <class C>
inline bool all_are_nan(const C* of_rows, int64_t count) {
  return std::all_of(of_rows, of_rows + count, [](C value) { return std::isnan(value); });
}

// The statistics of the rows of x * scale. As those of ordinary rows, but for the first guess of the
// means, which is of all elements.
template <class Stored, bool centered, class Rows>
Batch<Compute<Stored>, lanes<Compute<Stored>>> batch_of_scaled(const Rows& rows,
                                                               RowOf<const Stored> x,
                                                               const Compute<Stored>* scales,
                                                               const double* scaled_eps) {
  using C = Compute<Stored>;
  constexpr int64_t W = lanes<C>;
  const double n = static_cast<double>(rows.cols);
  const Vector<C> scale = load(scales);
  Batch<C, W> batch;
  std::fill(batch.shift, batch.shift + W, C{});
  std::fill(batch.sum, batch.sum + W, 0.0);
  if constexpr (centered) {
    Vector<C> sum[2] = {};
    rows.each([&](const auto& at, int turn) { sum[turn] += at.read(x) * scale; });
    rows.put_total(LaneTotal<C>(sum[0] + sum[1]), batch.sum);
    for (int64_t row = 0; row < rows.count(); ++row)
      batch.shift[row] = static_cast<C>(batch.sum[row] / n);
    rows.spread(batch.shift);
  }
  const auto sum_moments = [&] {
    const Vector<C> shift = load(batch.shift);
    FlushedSums<C, 2> sums;
    rows.each([&](const auto& at, int turn) {
      const Vector<C> d = at.keep(at.read(x) * scale - shift);
      sums.add(turn, {d, d * d});
    });
    sums.flush();
    if constexpr (centered) rows.put_total(sums.totals[0], batch.sum);
    rows.put_in_two(sums.totals[1], batch.squares, batch.rest);
  };
  sum_moments();
  if constexpr (centered) {
    // Sums all rows again; those whose shift did not change get the same sums as before.
    bool again = false;
    batch.recenter(rows.count(), n, kWellCentered, [&](int64_t) { again = true; });
    rows.spread(batch.shift);
    if (again) sum_moments();
  }
  batch.finish(rows.count(), n, [&](int64_t row) { return load_doubles(scaled_eps + row); });
  return batch;
}

// The nearest exponent of which 2^-exponent is a normal number, and 2^exponent too.
template <class C>
int scale_exponent(int exponent) {
  constexpr int most = std::numeric_limits<C>::max_exponent - 2, least = -most - 1;
  return std::clamp(exponent, least, most);
}

template <class Stored, bool centered, class Rows>
__attribute__((noinline)) ScaledStatistics<Stored> scaled_statistics(const Rows& rows,
                                                                     RowOf<const Stored> x,
                                                                     double eps) {
  using C = Compute<Stored>;
  constexpr int64_t W = lanes<C>;
  const int most_of_eps = sizeof(C) == sizeof(float) ? 200 : 900;  // its exponent, scaled
  ScaledStatistics<Stored> result;
  C largest[W];
  largest_magnitudes(rows, x, largest);
  bool any_finite = false;
  alignas(64) double scaled_eps[W];
  for (int64_t row = 0; row < rows.count(); ++row) {
    any_finite = any_finite || std::isfinite(largest[row]);
    // Brings the largest to [1, 4), or as near as a normal scale does. With less, eps could overflow,
    // or rstd underflow beside a huge eps.
    int exponent = std::max(exponent_of(static_cast<double>(largest[row])),
                            (exponent_of(eps) - most_of_eps) / 2);
    exponent = scale_exponent<C>(exponent);
    result.exponent[row] = exponent;
    result.scale[row] = power_of_two<C>(-exponent);
    scaled_eps[row] = times_power(eps, -2 * exponent);
  }
  rows.spread(result.scale);
  rows.spread(scaled_eps);
  Batch<C, W> batch;
  if (any_finite) batch = batch_of_scaled<Stored, centered>(rows, x, result.scale, scaled_eps);
  for (int64_t row = 0; row < rows.count(); ++row) {
    if (!std::isfinite(largest[row]))
      result.put_nan(row);
    else if (batch.squares[row] == 0)
      result.put_constant(row, batch[row], eps);
    else
      result.put(row, batch[row]);
  }
  result.spread(rows);
  return result;
}

// A row that is NaN holds the same NaN whether its neighbors are NaN or not.
template <class V>
inline V nan_where(V is_nan, V value) {
  using C = std::remove_reference_t<decltype(value[0])>;
  return is_nan == is_nan ? value : broadcast(std::numeric_limits<C>::quiet_NaN());
}

template <class Rows, class Stored>
void write_nan(const Rows& rows, RowOf<Stored> to) {
  using C = Compute<Stored>;
  rows.write(to, [](const auto&) { return broadcast(std::numeric_limits<C>::quiet_NaN()); });
}

// Writes y of the rows.
template <class Stored, bool centered, class Rows>
__attribute__((noinline)) void write_scaled_norm(const Rows& rows,
                                                 const ScaledStatistics<Stored>& statistics,
                                                 RowOf<const Stored> x,
                                                 const Compute<Stored>* weight,
                                                 const Compute<Stored>* bias, RowOf<Stored> y) {
  using C = Compute<Stored>;
  if (all_are_nan(statistics.rstd, rows.count())) return write_nan(rows, y);
  const ScaledNormalizer<C> normalizer = statistics.normalizer();
  rows.write(y, [&](const auto& at) {
    const Vector<C> xhat = normalizer.template normalized<centered>(at.read(x));
    const Vector<C> w = weight ? at.parameter(weight) : broadcast(C{1});
    const Vector<C> b = bias ? at.parameter(bias) : Vector<C>{};
    return nan_where(normalizer.normalizer.rstd, fma(xhat, w, b));
  });
}

// Writes y of the rows and returns their statistics.
template <class Stored, bool centered, class Rows>
ScaledStatistics<Stored> forward_scaled_rows(const Rows& rows, RowOf<const Stored> x,
                                             const Compute<Stored>* weight,
                                             const Compute<Stored>* bias, double eps,
                                             RowOf<Stored> y) {
  const auto statistics = scaled_statistics<Stored, centered>(rows, x, eps);
  write_scaled_norm<Stored, centered>(rows, statistics, x, weight, bias, y);
  return statistics;
}

// Outside this range rstd is too close to the limits of the compute type for full precision.
inline bool is_ordinary_rstd(float rstd) { return rstd > 0x1p-64f && rstd < 0x1p64f; }
inline bool is_ordinary_rstd(double rstd) { return rstd > 0x1p-500 && rstd < 0x1p500; }

// Whether the statistics of a row are as precise as the arithmetic on scaled rows needs. What the
// forward has saved of a row of tiny numbers may not be; rstd is 0 for a constant row, or has
// underflowed.
template <class C>
inline bool are_precise(const RowStatistics<C>& saved, double eps) {
  const bool is_normal =
      saved.rstd >= std::numeric_limits<C>::min() || (saved.rstd == 0 && eps == 0);
  return is_normal && std::isfinite(saved.residual) &&
         (is_ordinary_rstd(saved.rstd) || saved.rstd < 1);
}

// Of all rows: what the forward has saved, where it is precise.
template <class Stored, bool centered, class Rows>
ScaledStatistics<Stored> scaled_statistics_from(const RowStatistics<Compute<Stored>>* saved,
                                                const Rows& rows, RowOf<const Stored> x,
                                                double eps) {
  ScaledStatistics<Stored> result;
  bool all_precise = true;
  for (int64_t row = 0; row < rows.count(); ++row)
    all_precise = all_precise && are_precise(saved[row], eps);
  if (!all_precise)
    result = scaled_statistics<Stored, centered>(rows, x, std::isnan(eps) ? 0 : eps);
  for (int64_t row = 0; row < rows.count(); ++row) {
    if (!are_precise(saved[row], eps)) continue;
    const bool as_is = is_ordinary_rstd(saved[row].rstd) || saved[row].rstd == 0;
    result.take(row, saved[row], as_is ? 0 : -exponent_of(static_cast<double>(saved[row].rstd)));
  }
  result.spread(rows);
  return result;
}

// The powers of two, 2^a for dy and 2^b for the weight, that bring the largest |g| of a row near 1.
// They are balanced, so that neither factor of a g that counts leaves the range.
template <class Stored>
struct ExponentsOfG {
  using C = Compute<Stored>;
  static constexpr int64_t W = lanes<C>;
  int a[W], b[W];
  bool finite[W];  // false: dy holds a NaN or an infinity
  bool any_finite = false;

  template <class Rows>
  ExponentsOfG(const Rows& rows, RowOf<const Stored> dy, const C* weight) {
    using Terms = std::array<BitsOf<C>, 3>;
    const Vector<C> one = broadcast(C{1});
    // Of dy, of the weight, and of g.
    const Terms most = largest_over<3>(rows, [&](const auto& at) {
      const BitsOf<C> of_dy = exponents_of<C>(at.read(dy));
      const BitsOf<C> of_weight = exponents_of<C>(weight ? at.parameter(weight) : one);
      return Terms{of_dy, of_weight, of_dy + of_weight};
    });
    const auto in_row = [](BitsOf<C> of_rows, int64_t row) {
      return static_cast<int>(of_rows[row]);
    };
    for (int64_t row = 0; row < rows.count(); ++row) {
      const int of_dy = in_row(most[0], row), of_weight = in_row(most[1], row),
                of_g = in_row(most[2], row);
      finite[row] = of_dy <= Exponential<C>::bias;
      any_finite = any_finite || finite[row];
      a[row] = b[row] = 0;
      if (of_g < kExponentOfZero / 2) continue;
      // The largest of |g| is this far below the product of the largest factors. Its own factors are
      // brought no farther from 1 than by half of a type's range.
      const int below = of_dy + of_weight - of_g;
      a[row] = in_range<C>(below / 2 - of_dy);
      b[row] = in_range<C>(-of_g - a[row]);
    }
    rows.spread(a);
    rows.spread(b);
  }
};

template <class C>
struct ScaledSums {
  alignas(64) double g[lanes<C>], g_xhat[lanes<C>], squares_beyond[lanes<C>];
};

// The gradient of scaled rows: the sums along them, then dx.
template <class Stored, bool centered, class Rows>
struct ScaledGradient {
  using C = Compute<Stored>;
  static constexpr int64_t W = lanes<C>;

  const Rows& rows;
  const ScaledStatistics<Stored>& statistics;
  const RowOf<const Stored> x, dy;
  const C* const weight;
  const ExponentsOfG<Stored> exponents{rows, dy, weight};
  const Scale<C> scale{exponents.a, exponents.b};
  const ScaledNormalizer<C> normalizer = statistics.normalizer();

  template <class At>
  Vector<C> g(const At& at) const {
    const Vector<C> dy_here = at.read(dy);
    if (!weight) return scale(dy_here);
    const Vector<C> w = at.parameter(weight), product = scale.product(dy_here, w);
    // Where one factor is 0, the other may have overflowed.
    return product == product ? product : dy_here * w;
  }
  template <class At>
  Vector<C> xhat(const At& at) const {
    return at.keep(normalizer.template normalized<centered>(at.read(x)));
  }

  // Of g as it is scaled; squares_beyond is sum(xhat^2) less a number.
  __attribute__((noinline)) ScaledSums<C> sum(double beyond) const {
    FlushedSums<C, 3> sums;
    rows.each([&](const auto& at, int turn) {
      const Vector<C> g_here = g(at), xhat_here = xhat(at);
      sums.add(turn, {g_here, g_here * xhat_here, xhat_here * xhat_here});
    });
    sums.flush();
    ScaledSums<C> result;
    rows.put_total(sums.totals[0], result.g);
    rows.put_total(sums.totals[1], result.g_xhat);
    rows.put_total(sums.totals[2], result.squares_beyond, beyond);
    return result;
  }

  // Writes dx, plus dtotal unless that is null; the slope is rstd * mean(g * xhat), scaled.
  __attribute__((noinline)) void write(const C* mean_g, const C* slope, RowOf<const Stored> dtotal,
                                       RowOf<Stored> dx) const {
    alignas(64) C rstd[W];
    int up[W] = {}, rest[W] = {};
    for (int64_t row = 0; row < rows.count(); ++row) {
      // An infinity in dy makes the whole row NaN, as one in x does.
      rstd[row] =
          exponents.finite[row] ? statistics.rstd[row] : std::numeric_limits<C>::quiet_NaN();
      const int exponent = -exponents.a[row] - exponents.b[row] - statistics.exponent[row];
      up[row] = exponent / 2;
      rest[row] = exponent - exponent / 2;
    }
    rows.spread(rstd);
    for (int* each : {up, rest}) rows.spread(each);
    const Scale<C> of_dx(up, rest);
    const Vector<C> mean_of_g = load(mean_g), of_g = load(rstd), of_xhat = -load(slope);
    rows.write(dx, [&](const auto& at) {
      Vector<C> value = of_dx(fma(g(at) - mean_of_g, of_g, xhat(at) * of_xhat));
      if (dtotal.data) value += at.read(dtotal);
      return nan_where(of_g, value);
    });
  }
};

// Writes dx, plus dtotal unless that is null.
template <class Stored, bool centered, class Rows>
void backward_scaled_rows(const Rows& rows, const ScaledStatistics<Stored>& statistics,
                          RowOf<const Stored> x, RowOf<const Stored> dy,
                          const Compute<Stored>* weight, RowOf<const Stored> dtotal,
                          RowOf<Stored> dx, double eps) {
  using C = Compute<Stored>;
  constexpr int64_t W = lanes<C>;
  if (all_are_nan(statistics.rstd, rows.count())) return write_nan(rows, dx);
  const ScaledGradient<Stored, centered, Rows> gradient{rows, statistics, x, dy, weight};
  if (!gradient.exponents.any_finite) return write_nan(rows, dx);
  const double n = static_cast<double>(rows.cols);
  const ScaledSums<C> sums = gradient.sum(n);
  alignas(64) double scaled_eps[W];
  for (int64_t row = 0; row < rows.count(); ++row)
    scaled_eps[row] = times_power(eps, -2 * statistics.exponent[row]);
  rows.spread(scaled_eps);
  alignas(64) C mean_g[W] = {}, slope[W];
  for (int64_t first = 0; first < W; first += lanes<double>) {
    const DoubleVector along = slope_along_xhat<C>(
        load_doubles(sums.g_xhat + first), load_doubles(sums.squares_beyond + first),
        load_doubles(statistics.rstd + first), load_doubles(scaled_eps + first), n);
    store_doubles(slope + first, along);
    if constexpr (centered)
      store_doubles(mean_g + first, load_doubles(sums.g + first) / broadcast(n));
  }
  gradient.write(mean_g, slope, dtotal, dx);
}
