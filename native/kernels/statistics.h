// The mean and the reciprocal standard deviation of a row, in one pass where the row allows it.
//
// d = x - shift, with a shift near the mean, sum(d) and sum(d^2): var = mean(d^2) - mean(d)^2 is
// accurate as long as mean(d)^2 is small beside var. The shift is the mean of the row's first
// elements; the condition is checked, and the few rows that fail it take a second pass around the
// mean itself. Derived in docs/derivation.md.
#pragma once

template <class C>
struct RowStatistics {
  C mean, residual;  // the mean is their unevaluated sum
  C rstd;
  bool ordinary;  // false: sums left the safe range, or a NaN: see wide_row.h
};

// mean(d)^2 may be as large as the variance: the subtraction then loses one bit.
constexpr double kWellCentered = 1;

// Below it (with eps added) squares may have underflowed.
constexpr double smallest_variance(float) { return 0x1p-80; }
constexpr double smallest_variance(double) { return 0x1p-900; }

struct Moments {
  double sum, squares;
};

inline void split_mean(float shift, double delta, RowStatistics<float>& row) {
  const double mean = static_cast<double>(shift) + delta;
  row.mean = static_cast<float>(mean);
  row.residual = static_cast<float>(mean - static_cast<double>(row.mean));
}
inline void split_mean(double shift, double delta, RowStatistics<double>& row) {
  row.mean = shift + delta;
  row.residual = two_sum_error(shift, delta, row.mean);
}

inline bool is_well_centered(double delta, double variance) {
  return delta * delta <= kWellCentered * variance;  // false for NaN
}

template <class C>
inline void finish_statistics(C shift, double delta, double variance, double eps,
                              RowStatistics<C>& row) {
  variance = variance > 0 ? variance : variance == variance ? 0 : variance;
  split_mean(shift, delta, row);
  row.rstd = static_cast<C>(1 / std::sqrt(variance + eps));
  row.ordinary = variance + eps >= smallest_variance(C{}) && variance <= DBL_MAX;
}

template <class Stored, bool centered>
inline Moments moments_about(Compute<Stored> shift, const Stored* x, int64_t cols) {
  using C = Compute<Stored>;
  constexpr int64_t W = lanes<C>;
  const Vector<C> center = broadcast(shift);
  const int64_t whole = cols - cols % W;
  LaneTotal<C> sum, squares;
  for (int64_t col = 0; col < whole;) {
    const int64_t block_end = std::min(whole, col + 4 * kFlush * W);
    Vector<C> sum0 = {}, sum1 = {}, sum2 = {}, sum3 = {};
    Vector<C> squares0 = {}, squares1 = {}, squares2 = {}, squares3 = {};
    for (; col + 4 * W <= block_end; col += 4 * W) {
      const Vector<C> d0 = load(x + col) - center;
      const Vector<C> d1 = load(x + col + W) - center;
      const Vector<C> d2 = load(x + col + 2 * W) - center;
      const Vector<C> d3 = load(x + col + 3 * W) - center;
      sum0 += d0;
      sum1 += d1;
      sum2 += d2;
      sum3 += d3;
      squares0 = fma(d0, d0, squares0);
      squares1 = fma(d1, d1, squares1);
      squares2 = fma(d2, d2, squares2);
      squares3 = fma(d3, d3, squares3);
    }
    for (; col < block_end; col += W) {
      const Vector<C> d = load(x + col) - center;
      sum0 += d;
      squares0 = fma(d, d, squares0);
    }
    if constexpr (centered) sum.add((sum0 + sum1) + (sum2 + sum3));
    squares.add((squares0 + squares1) + (squares2 + squares3));
  }
  if (whole < cols) {
    const int64_t rest = cols - whole;
    const Vector<C> d = keep_first(load_first(x + whole, rest) - center, rest);
    if constexpr (centered) sum.add(d);
    squares.add(d * d);
  }
  return {centered ? sum.sum() : 0, squares.sum()};
}

// The mean of the first four vectors of the row.
template <class Stored>
inline Compute<Stored> first_guess_of_mean(const Stored* x, int64_t cols) {
  using C = Compute<Stored>;
  constexpr int64_t W = lanes<C>;
  Vector<C> sum = {};
  int64_t col = 0;
  if (cols >= 4 * W) {
    sum = (load(x) + load(x + W)) + (load(x + 2 * W) + load(x + 3 * W));
    col = 4 * W;
  } else {
    for (; col + W <= cols; col += W) sum += load(x + col);
    if (col < cols) sum += load_first(x + col, cols - col);
    col = cols;
  }
  return sum_of_lanes_rounded(sum) / static_cast<C>(col);
}

template <class Stored, bool centered>
inline RowStatistics<Compute<Stored>> statistics_of(const Stored* x, int64_t cols, double eps) {
  using C = Compute<Stored>;
  const double n = static_cast<double>(cols);
  C shift = 0;
  if constexpr (centered) shift = first_guess_of_mean(x, cols);
  Moments moments = moments_about<Stored, centered>(shift, x, cols);
  double delta = moments.sum / n;
  double variance = (moments.squares - moments.sum * delta) / n;
  if (centered && !is_well_centered(delta, variance)) {
    shift = static_cast<C>(static_cast<double>(shift) + delta);
    moments = moments_about<Stored, centered>(shift, x, cols);
    delta = moments.sum / n;
    variance = (moments.squares - moments.sum * delta) / n;
  }
  RowStatistics<C> row;
  finish_statistics(shift, delta, variance, eps, row);
  if constexpr (!centered) row.mean = row.residual = 0;
  return row;
}

// sum(x - mean) / cols: what a float mean leaves out, for statistics that came without it.
template <class Stored>
inline Compute<Stored> residual_of(Compute<Stored> mean, const Stored* x, int64_t cols) {
  const Moments moments = moments_about<Stored, true>(mean, x, cols);
  return static_cast<Compute<Stored>>(moments.sum / static_cast<double>(cols));
}
