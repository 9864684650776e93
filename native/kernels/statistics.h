// The mean and the reciprocal standard deviation of a row, in one pass for most rows.
//
// With d = x - shift, var = mean(d^2) - mean(d)^2 is accurate as long as mean(d)^2 is small beside
// var. The shift is the mean of the row's first elements. The few rows that fail the condition take
// a second pass, shifted by the mean itself. Derived in docs/derivation.md.
#pragma once

template <class C>
struct RowStatistics {
  C mean, residual;  // the mean is their unevaluated sum
  C rstd;
  bool ordinary;  // false: a sum left the safe range or is NaN; needs scalar_row.h
};

// Turns x into xhat, for one row or, over columns, for one row per lane.
template <class C>
struct Normalizer {
  Vector<C> mean, rstd, offset;

  Normalizer() = default;
  Normalizer(Vector<C> mean_, Vector<C> residual, Vector<C> rstd_)
      : mean(mean_), rstd(rstd_), offset(-(residual * rstd_)) {}
  explicit Normalizer(const RowStatistics<C>& row)
      : Normalizer(broadcast(row.mean), broadcast(row.residual), broadcast(row.rstd)) {}

  template <bool centered>
  Vector<C> normalized(Vector<C> x) const {
    if constexpr (centered) return fma(x - mean, rstd, offset);
    return x * rstd;
  }
};

// The largest mean(d)^2 / variance. At 1 the subtraction loses one bit: sums of floats, computed in
// double, can spare it; sums of doubles cannot. But where many terms are equal, all lanes round
// alike, and the mean's error grows with its distance from the shift.
template <class C>
constexpr double kWellCentered = sizeof(C) == sizeof(float) ? 0x1p-2 : 0x1p-6;

// Below this variance + eps, squares may have underflowed.
constexpr double smallest_variance(float) { return 0x1p-80; }
constexpr double smallest_variance(double) { return 0x1p-900; }

// shift + delta as an unevaluated sum mean + residual.
inline void split_mean(const float* shift, DoubleVector delta, float* mean, float* residual) {
  const DoubleVector sum = load_doubles(shift) + delta;
  store_doubles(mean, sum);
  store_doubles(residual, sum - load_doubles(mean));
}
inline void split_mean(const double* shift, DoubleVector delta, double* mean, double* residual) {
  const DoubleVector sum = load_doubles(shift) + delta;
  store_doubles(mean, sum);
  store_doubles(residual, two_sum_error(load_doubles(shift), delta, sum));
}

// v / n; sums of floats have bits to spare and multiply by 1 / n, which is faster.
template <class C>
inline DoubleVector over(DoubleVector v, double n) {
  return sizeof(C) == sizeof(float) ? v * broadcast(1 / n) : v / broadcast(n);
}

// The statistics of several rows at once: the divisions and square roots are done side by side.
// Entries past the rows in use are zero.
template <class C, int64_t capacity>
struct Batch {
  static constexpr int64_t W = lanes<double>;
  static_assert(capacity % W == 0, "whole vectors of doubles");

  // A row's value is stored as a whole vector, of which the next row's store leaves the first lane:
  // a vector load right after a narrower store would stall.
  alignas(64) C shift[capacity + lanes<C>] = {};
  alignas(64) double sum[capacity + W] = {}, squares[capacity + W] = {};  // of d = x - shift
  alignas(64) C mean[capacity], residual[capacity], rstd[capacity];
  alignas(64) double total[capacity];  // variance + eps

  DoubleVector delta(int64_t row, double n) const { return over<C>(load_doubles(sum + row), n); }
  DoubleVector variance(int64_t row, double n) const {
    return over<C>(load_doubles(squares + row) - load_doubles(sum + row) * delta(row, n), n);
  }

  // What the roundings of variance() have taken away.
  DoubleVector variance_error(int64_t row, double n) const {
    const DoubleVector whole = load_doubles(squares + row);
    const DoubleVector part = load_doubles(sum + row) * delta(row, n);
    const DoubleVector difference = whole - part;
    return division_error(difference, broadcast(n)) +
           two_sum_error(whole, -part, difference) / broadcast(n);
  }

  // Moves the shift of each row that needs it to its mean, and calls again(row) for those: where
  // mean(d)^2 / variance is above `most`.
  template <class F>
  void recenter(int64_t rows, double n, double most, F again) {
    for (int64_t first = 0; first < rows; first += W) {
      const DoubleVector offset = delta(first, n);
      const DoubleVector square = offset * offset;
      const DoubleVector allowed = broadcast(most) * variance(first, n);
      if (all_at_most(square, allowed)) continue;
      for (int64_t lane = 0; lane < W && first + lane < rows; ++lane) {
        if (square[lane] <= allowed[lane]) continue;
        C& center = shift[first + lane];
        center = static_cast<C>(static_cast<double>(center) + offset[lane]);
        again(first + lane);
      }
    }
  }

  void finish(int64_t rows, double n, double eps) {
    for (int64_t row = 0; row < rows; row += W) {
      split_mean(shift + row, delta(row, n), mean + row, residual + row);
      const DoubleVector var = at_least_zero(variance(row, n)), with_eps = var + broadcast(eps);
      store_doubles(total + row, with_eps);
      if constexpr (sizeof(C) == sizeof(double)) {
        const DoubleVector low =
            variance_error(row, n) + two_sum_error(var, broadcast(eps), with_eps);
        store_doubles(rstd + row, reciprocal_root(with_eps, low));
      } else {
        store_doubles(rstd + row, broadcast(1.0) / square_root(with_eps));
      }
    }
  }

  RowStatistics<C> operator[](int64_t row) const {
    return {mean[row], residual[row], rstd[row],
            total[row] >= smallest_variance(C{}) && total[row] <= DBL_MAX};
  }
};

// Four vectors of a row, in pack order.
template <class Stored>
inline void load_four(const Stored* from, Vector<Compute<Stored>>* v) {
  constexpr int64_t parts = vectors_in_pack<Stored>;
  for (int64_t at = 0; at < 4; at += parts) {
    const Pack<Stored> pack = load_pack(from + at * lanes<Compute<Stored>>);
    for (int64_t part = 0; part < parts; ++part) v[at + part] = pack.part[part];
  }
}

template <class Stored, bool centered>
inline void sum_moments(const Stored* x, int64_t cols, Compute<Stored> shift, double& sum_d,
                        double& sum_squares) {
  using C = Compute<Stored>;
  constexpr int64_t W = lanes<C>;
  const Vector<C> center = broadcast(shift);
  const int64_t whole = cols - cols % W;
  LaneTotal<C> total, total_squares;
  for (int64_t col = 0; col < whole;) {
    const int64_t block_end = std::min(whole, col + 4 * kFlush * W);
    Vector<C> sum[4] = {}, squares[4] = {};
    for (; col + 4 * W <= block_end; col += 4 * W) {
      Vector<C> d[4];
      load_four(x + col, d);
      for (int v = 0; v < 4; ++v) d[v] -= center;
      for (int v = 0; v < 4; ++v) squares[v] = fma(d[v], d[v], squares[v]);
      if constexpr (centered)
        for (int v = 0; v < 4; ++v) sum[v] += d[v];
    }
    for (; col < block_end; col += W) {
      const Vector<C> d = load(x + col) - center;
      sum[0] += d;
      squares[0] = fma(d, d, squares[0]);
    }
    if constexpr (centered) total.add((sum[0] + sum[1]) + (sum[2] + sum[3]));
    total_squares.add((squares[0] + squares[1]) + (squares[2] + squares[3]));
  }
  if (whole < cols) {
    const int64_t rest = cols - whole;
    const Vector<C> d = keep_first(load_first(x + whole, rest) - center, rest);
    if constexpr (centered) total.add(d);
    total_squares.add(d * d);
  }
  if constexpr (centered) sum_d = total.sum();
  sum_squares = total_squares.sum();
}

// The mean of the first four vectors of the row.
template <class Stored>
inline Compute<Stored> first_guess_of_mean(const Stored* x, int64_t cols) {
  using C = Compute<Stored>;
  constexpr int64_t W = lanes<C>;
  if (cols >= 4 * W) {
    Vector<C> v[4];
    load_four(x, v);
    return sum_of_lanes_rounded((v[0] + v[1]) + (v[2] + v[3])) * (1 / static_cast<C>(4 * W));
  }
  Vector<C> sum = {};
  int64_t col = 0;
  for (; col + W <= cols; col += W) sum += load(x + col);
  if (col < cols) sum += load_first(x + col, cols - col);
  return sum_of_lanes_rounded(sum) / static_cast<C>(cols);
}

// The statistics of `rows` <= capacity rows, `stride` elements apart.
template <class Stored, bool centered, int64_t capacity>
inline void compute_statistics(const Stored* x, int64_t stride, int64_t rows, int64_t cols,
                               double eps, Batch<Compute<Stored>, capacity>& batch) {
  const double n = static_cast<double>(cols);
  if constexpr (centered)
    for (int64_t row = 0; row < rows; ++row)
      store(batch.shift + row, broadcast(first_guess_of_mean(x + row * stride, cols)));
  for (int64_t row = 0; row < rows; ++row) {
    double sum = 0, squares;
    sum_moments<Stored, centered>(x + row * stride, cols, batch.shift[row], sum, squares);
    store(batch.sum + row, broadcast(sum));
    store(batch.squares + row, broadcast(squares));
  }
  if constexpr (centered)
    batch.recenter(rows, n, kWellCentered<Compute<Stored>>, [&](int64_t row) {
      sum_moments<Stored, centered>(x + row * stride, cols, batch.shift[row], batch.sum[row],
                                    batch.squares[row]);
    });
  batch.finish(rows, n, eps);
}

// sum(x - mean) / cols: the residual, for statistics that came without it.
template <class Stored>
inline Compute<Stored> residual_of(Compute<Stored> mean, const Stored* x, int64_t cols) {
  double sum, squares;
  sum_moments<Stored, true>(x, cols, mean, sum, squares);
  return static_cast<Compute<Stored>>(sum / static_cast<double>(cols));
}
