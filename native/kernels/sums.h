// Sums along a row that keep their accuracy: float lanes for a few additions, doubles above them.
#pragma once

// A lane is added to at most this often before it is flushed into a LaneTotal: the rounding of even
// the least favorable input (all terms alike) then stays below one ulp of the sum.
constexpr int64_t kFlush = 16;

inline double two_sum_error(double a, double b, double sum) {
  const double b_part = sum - a;
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

// A running sum of vectors, unevaluated as high + low (Knuth's two-sum, elementwise).
template <class C>
struct Compensated {
  Vector<C> high, low;
  void add(Vector<C> v) {
    const Vector<C> sum = high + v;
    const Vector<C> v_part = sum - high;
    low += (high - (sum - v_part)) + (v - v_part);
    high = sum;
  }
};

// The same for one element in memory.
template <class C>
inline void add_compensated(C& high, C& low, C value) {
  const C sum = high + value;
  const C value_part = sum - high;
  low += (high - (sum - value_part)) + (value - value_part);
  high = sum;
}
