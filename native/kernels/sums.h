// Accurate sums along a row: a few additions in float lanes, then double.
#pragma once

// The most additions to a lane before it is flushed into a LaneTotal. The roundings of equal terms
// add up to several ulp in a lane; those of a row's many lanes and blocks average out, unless all
// are of the same numbers, as in runs of equal elements.
constexpr int64_t kFlush = 8;

// The rounding error of sum = a + b, exactly (Knuth's two-sum); for scalars and vectors.
template <class T>
inline T two_sum_error(T a, T b, T sum) {
  const T b_part = sum - a;
  return (a - (sum - b_part)) + (b - b_part);
}

// The rounding error of product = a * b, exactly: by one fused operation, or of the factors' halves
// (Dekker), each of which has half the bits.
template <class T>
inline void split_in_halves(T v, T& high, T& low) {
  const T scaled = v * 134217729.0;  // 2^27 + 1
  high = scaled - (scaled - v);
  low = v - high;
}
template <class T>
inline T two_product_error(T a, T b, T product) {
#if defined(__FMA__) || defined(__aarch64__)
  return -fma(-a, b, product);
#else
  T a_high, a_low, b_high, b_low;
  split_in_halves(a, a_high, a_low);
  split_in_halves(b, b_high, b_low);
  return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
#endif
}

// What rounding has taken from v / n. Scaled, so that products of halves do not overflow.
inline DoubleVector division_error(DoubleVector v, DoubleVector n) {
  const double scale = 1 / 0x1p64;
  const DoubleVector scaled = v * broadcast(scale), quotient = scaled / n, times_n = quotient * n;
  const DoubleVector rest = (scaled - times_n) - two_product_error(quotient, n, times_n);
  return rest / n * broadcast(1 / scale);
}

// 1 / sqrt(high + low), to about half an ulp: its square is put beside high + low, which takes both
// roundings back. dx needs that: an error of rstd counts twice where dx is small by cancellation.
inline DoubleVector reciprocal_root(DoubleVector high, DoubleVector low) {
  const DoubleVector root = broadcast(1.0) / square_root(high);
  // Scaled, as above.
  const DoubleVector v = high * broadcast(0x1p-64), r = root * broadcast(0x1p32);
  const DoubleVector vr = v * r, one = vr * r;
  const DoubleVector rest = ((broadcast(1.0) - one) - two_product_error(vr, r, one)) -
                            (two_product_error(v, r, vr) + low * broadcast(0x1p-64) * r) * r;
  return root + root * (broadcast(0.5) * rest);
}

// One total per lane, in double; terms that are doubles are summed with compensation. Less a number
// close to it (`beyond`), a compensated total keeps the digits that it would lose to rounding. Zero
// where it is written so: arrays of totals that are set anyway are not zeroed first.
template <class C>
struct LaneTotal;

template <>
struct LaneTotal<float> {
  DoubleVector first, second;
  LaneTotal() = default;
  explicit LaneTotal(FloatVector v)
      : first(first_half_as_doubles(v)), second(second_half_as_doubles(v)) {}
  void add(FloatVector v) {
    first += first_half_as_doubles(v);
    second += second_half_as_doubles(v);
  }
  void add(const LaneTotal& other) {
    first += other.first;
    second += other.second;
  }
  double sum(double beyond = 0) const { return sum_of_lanes(first + second) - beyond; }
  void store(double* to, double beyond = 0) const {
    store_doubles(to, first - broadcast(beyond));
    store_doubles(to + lanes<double>, second - broadcast(beyond));
  }
};

template <>
struct LaneTotal<double> {
  DoubleVector total, error;
  LaneTotal() = default;
  explicit LaneTotal(DoubleVector v) : total(v), error{} {}
  void add(DoubleVector v) {
    const DoubleVector sum = total + v;
    const DoubleVector v_part = sum - total;
    error += (total - (sum - v_part)) + (v - v_part);
    total = sum;
  }
  void add(const LaneTotal& other) {
    add(other.total);
    error += other.error;
  }
  double sum(double beyond = 0) const {
    double result = -beyond, rest = 0;
    for (int64_t lane = 0; lane < lanes<double>; ++lane) {
      const double next = result + total[lane];
      rest += error[lane] + two_sum_error(result, total[lane], next);
      result = next;
    }
    return result + rest;
  }
  void store(double* to, double beyond = 0) const {
    store_doubles(to, (total - broadcast(beyond)) + error);
  }
};

// The totals of lanes<double> rows, summed together: each as LaneTotal::sum() would.
template <class C>
struct TotalsOfRows;

template <>
struct TotalsOfRows<float> {
  static constexpr int64_t W = lanes<double>;
  DoubleVector total[W];

  void put(int64_t row, const LaneTotal<float>& of_row) {
    total[row] = of_row.first + of_row.second;
  }
  void repeat(int64_t row) { total[row + 1] = total[row]; }
  DoubleVector sums() const { return sums_of_lanes(total); }
};

template <>
struct TotalsOfRows<double> {
  static constexpr int64_t W = lanes<double>;
  DoubleVector total[W], error[W];

  void put(int64_t row, const LaneTotal<double>& of_row) {
    total[row] = of_row.total;
    error[row] = of_row.error;
  }
  void repeat(int64_t row) {
    total[row + 1] = total[row];
    error[row + 1] = error[row];
  }
  DoubleVector sums() {
    transpose(total);
    transpose(error);
    DoubleVector result = {}, rest = {};
    for (int64_t lane = 0; lane < W; ++lane) {
      const DoubleVector next = result + total[lane];
      rest += error[lane] + two_sum_error(result, total[lane], next);
      result = next;
    }
    return result + rest;
  }
};

// Adds to the unevaluated sum high + low. Once high is infinite or NaN, low stays finite.
template <class C>
inline void add_compensated(C& high, C& low, C value) {
  const C sum = high + value;
  if (std::isfinite(sum)) low += two_sum_error(high, value, sum);
  high = sum;
}
template <class V>
inline void add_compensated_vector(V& high, V& low, V value) {
  const V sum = high + value;
  low += zero_unless_finite(two_sum_error(high, value, sum), sum);
  high = sum;
}
