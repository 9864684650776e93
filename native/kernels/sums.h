// Accurate sums along a row: a few additions in float lanes, then double.
#pragma once

// The most additions to a lane before it is flushed into a LaneTotal. The rounding error then stays
// below one ulp of the sum, even in the worst case (all terms equal).
constexpr int64_t kFlush = 16;

// The rounding error of sum = a + b, exactly (Knuth's two-sum); for scalars and vectors.
template <class T>
inline T two_sum_error(T a, T b, T sum) {
  const T b_part = sum - a;
  return (a - (sum - b_part)) + (b - b_part);
}

// One total per lane, in double; terms that are doubles are summed with compensation.
template <class C>
struct LaneTotal;

template <>
struct LaneTotal<float> {
  DoubleVector first = {}, second = {};
  void add(FloatVector v) {
    first += first_half_as_doubles(v);
    second += second_half_as_doubles(v);
  }
  double sum() const { return sum_of_lanes(first + second); }
  void store(double* to) const {
    std::memcpy(to, &first, sizeof(first));
    std::memcpy(to + lanes<double>, &second, sizeof(second));
  }
};

template <>
struct LaneTotal<double> {
  DoubleVector total = {}, error = {};
  void add(DoubleVector v) {
    const DoubleVector sum = total + v;
    const DoubleVector v_part = sum - total;
    error += (total - (sum - v_part)) + (v - v_part);
    total = sum;
  }
  double sum() const {
    double result = total[0], rest = error[0];
    for (int64_t lane = 1; lane < lanes<double>; ++lane) {
      const double next = result + total[lane];
      rest += error[lane] + two_sum_error(result, total[lane], next);
      result = next;
    }
    return result + rest;
  }
  void store(double* to) const {
    const DoubleVector sum = total + error;
    std::memcpy(to, &sum, sizeof(sum));
  }
};

// Adds to the unevaluated sum high + low. Once high is infinite or NaN, low stays finite.
template <class C>
inline void add_compensated(C& high, C& low, C value) {
  const C sum = high + value;
  if (std::isfinite(sum)) low += two_sum_error(high, value, sum);
  high = sum;
}
