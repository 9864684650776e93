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

// v with the upper half of its digits.
inline DoubleVector upper_half(DoubleVector v) {
  constexpr int64_t lower_half = (int64_t{1} << 27) - 1;
  return reinterpret_cast<DoubleVector>(bits_of<double>(v) & ~lower_half);
}
// The rounding error of product = a * b: exactly, by one fused operation, or of the factors' halves
// (Dekker), of which the lower ones' product alone is rounded.
inline DoubleVector two_product_error(DoubleVector a, DoubleVector b, DoubleVector product) {
#if defined(__FMA__) || defined(__aarch64__)
  return -fma(-a, b, product);
#else
  const DoubleVector a_high = upper_half(a), a_low = a - a_high;
  const DoubleVector b_high = upper_half(b), b_low = b - b_high;
  return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
#endif
}

// What rounding has taken from v / n. Scaled, as the product may overflow where v does not.
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
  const DoubleVector product = high * root, one = product * root;
  const DoubleVector rest = ((broadcast(1.0) - one) - two_product_error(product, root, one)) -
                            (two_product_error(high, root, product) + low * root) * root;
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
  // As below; there is no rest that counts in floats.
  double sum_in_two(double*) const { return sum(); }
  void store_in_two(double* to, double*) const { store(to); }
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
    double rest;
    const double sum = sum_in_two(&rest, beyond);
    return sum + rest;
  }
  void store(double* to, double beyond = 0) const {
    store_doubles(to, (total - broadcast(beyond)) + error);
  }
  // Without the rounding of the last addition: the sum is what these return or store, plus `rest`.
  double sum_in_two(double* rest, double beyond = 0) const {
    double result = -beyond;
    *rest = 0;
    for (int64_t lane = 0; lane < lanes<double>; ++lane) {
      const double next = result + total[lane];
      *rest += error[lane] + two_sum_error(result, total[lane], next);
      result = next;
    }
    return result;
  }
  void store_in_two(double* to, double* rest) const {
    store_doubles(to, total);
    store_doubles(rest, error);
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
  DoubleVector sums_in_two(double*) const { return sums(); }
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
    alignas(64) double rest[W];
    const DoubleVector sums = sums_in_two(rest);
    return sums + load_doubles(rest);
  }
  DoubleVector sums_in_two(double* rests) {
    transpose(total);
    transpose(error);
    DoubleVector result = {}, rest = {};
    for (int64_t lane = 0; lane < W; ++lane) {
      const DoubleVector next = result + total[lane];
      rest += error[lane] + two_sum_error(result, total[lane], next);
      result = next;
    }
    store_doubles(rests, rest);
    return result;
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
