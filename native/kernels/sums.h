// Sums along a row that keep their accuracy: float lanes for a few additions, doubles above them.
#pragma once

// A lane is added to at most this often before it is flushed into a LaneTotal: the rounding of even
// the least favorable input (all terms alike) then stays below one ulp of the sum.
constexpr int64_t kFlush = 16;

// What rounding took from sum = a + b; for doubles and vectors of them.
template <class T>
inline T two_sum_error(T a, T b, T sum) {
  const T b_part = sum - a;
  return (a - (sum - b_part)) + (b - b_part);
}

// One total per lane, in double; for double itself, in double with the rounding errors beside it.
template <class C>
struct LaneTotal;

template <>
struct LaneTotal<float> {
  DoubleVector first = {}, second = {};
  void add(FloatVector v) {
    first += widen_first(v);
    second += widen_second(v);
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

// Adds to a sum kept unevaluated as high + low. A sum that is not finite keeps that in high alone.
template <class C>
inline void add_compensated(C& high, C& low, C value) {
  const C sum = high + value;
  if (std::isfinite(sum)) low += two_sum_error(high, value, sum);
  high = sum;
}
