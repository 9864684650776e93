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
  bool ordinary;  // false: a sum left the safe range or is NaN; needs scaled_rows.h
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

// The largest mean(d)^2 / variance. The subtraction could do with less: at 1 it loses one bit, which
// the sums can spare. But where many terms are equal, all lanes round alike, and the mean's error
// grows with its distance from the shift.
constexpr double kWellCentered = 0x1p-2;

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
// Entries past the rows in use, up to a whole vector of doubles, are of no row.
template <class C, int64_t capacity>
struct Batch {
  static constexpr int64_t W = lanes<double>;
  static_assert(capacity % W == 0, "whole vectors of doubles");
  static constexpr bool is_double = sizeof(C) == sizeof(double);

  alignas(64) C shift[capacity];
  alignas(64) double sum[capacity], squares[capacity];  // of d = x - shift
  alignas(64) double rest[is_double ? capacity : W];    // of the squares; of floats there is none
  alignas(64) C mean[capacity], residual[capacity], rstd[capacity];
  alignas(64) double total[capacity];  // variance + eps

  DoubleVector delta(int64_t row, double n) const { return over<C>(load_doubles(sum + row), n); }
  DoubleVector variance(int64_t row, double n) const {
    return over<C>(load_doubles(squares + row) - load_doubles(sum + row) * delta(row, n), n);
  }

  double* rest_of_squares(int64_t row) { return is_double ? rest + row : rest; }

  // What variance() lacks: the rest of the squares, and what its roundings have taken away.
  DoubleVector variance_error(int64_t row, double n) const {
    const DoubleVector whole = load_doubles(squares + row);
    const DoubleVector part = load_doubles(sum + row) * delta(row, n);
    const DoubleVector difference = whole - part;
    return division_error(difference, broadcast(n)) +
           (two_sum_error(whole, -part, difference) + load_doubles(rest + row)) / broadcast(n);
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

  // eps_of(row) is that of the rows of a vector, from `row` on.
  template <class F>
  LAYERNORM_INLINE void finish(int64_t rows, double n, F eps_of) {
    for (int64_t row = 0; row < rows; row += W) {
      split_mean(shift + row, delta(row, n), mean + row, residual + row);
      const DoubleVector eps = eps_of(row);
      const DoubleVector var = at_least_zero(variance(row, n)), with_eps = var + eps;
      store_doubles(total + row, with_eps);
      if constexpr (is_double) {
        const DoubleVector low = variance_error(row, n) + two_sum_error(var, eps, with_eps);
        store_doubles(rstd + row, reciprocal_root(with_eps, low));
      } else {
        store_doubles(rstd + row, broadcast(1.0) / square_root(with_eps));
      }
    }
  }

  bool is_ordinary(int64_t row) const {
    return total[row] >= smallest_variance(C{}) && total[row] <= DBL_MAX;
  }
  bool are_ordinary(int64_t rows) const {
    const DoubleVector least = broadcast(smallest_variance(C{})), most = broadcast(DBL_MAX);
    bool all = true;
    int64_t row = 0;
    for (; row + W <= rows; row += W) {
      const DoubleVector here = load_doubles(total + row);
      all = all && all_at_most(least, here) && all_at_most(here, most);
    }
    for (; row < rows; ++row) all = all && is_ordinary(row);
    return all;
  }

  RowStatistics<C> operator[](int64_t row) const {
    return {mean[row], residual[row], rstd[row], is_ordinary(row)};
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

// The most additions to a lane of moments before it is flushed: none of doubles, whose squares rstd
// needs to half an ulp. Beside one large element, each addition is off by as much as its own rounding.
template <class C>
constexpr int64_t kAdditions = sizeof(C) == sizeof(float) ? kFlush : 1;

// The sums of d = x - shift and of d^2 over a row, a total for each lane.
template <class C>
struct Moments {
  LaneTotal<C> d, squares;
};

template <class Stored, bool centered>
LAYERNORM_INLINE Moments<Compute<Stored>> moments_of_part(const Stored* x, int64_t cols,
                                                          Compute<Stored> shift) {
  using C = Compute<Stored>;
  constexpr int64_t W = lanes<C>;
  const Vector<C> center = broadcast(shift);
  Moments<C> moments = {};
  for (int64_t col = 0; col < cols;) {
    const bool begins = col == 0;
    const int64_t block_end = std::min(cols, col + 4 * kAdditions<C> * W);
    Vector<C> sum[4] = {}, squares[4] = {};
    if (col + 4 * W <= block_end) {
      load_four(x + col, sum);
      for (int v = 0; v < 4; ++v) sum[v] -= center;
      for (int v = 0; v < 4; ++v) squares[v] = sum[v] * sum[v];
      col += 4 * W;
    }
    for (; col + 4 * W <= block_end; col += 4 * W) {
      Vector<C> d[4];
      load_four(x + col, d);
      for (int v = 0; v < 4; ++v) d[v] -= center;
      for (int v = 0; v < 4; ++v) squares[v] = fma(d[v], d[v], squares[v]);
      if constexpr (centered)
        for (int v = 0; v < 4; ++v) sum[v] += d[v];
    }
    const auto add = [&](int v, Vector<C> d) {
      squares[v] = fma(d, d, squares[v]);
      if constexpr (centered) sum[v] += d;
    };
    LAYERNORM_UNROLL
    for (int v = 0; v < 4; ++v) {
      if (col + W <= block_end) {
        add(v, load(x + col) - center);
        col += W;
      } else if (col < block_end) {
        const int64_t rest = block_end - col;
        add(v, keep_first(load_first(x + col, rest) - center, rest));
        col = block_end;
      }
    }
    const Vector<C> all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    const Vector<C> all_squares = (squares[0] + squares[1]) + (squares[2] + squares[3]);
    if (begins) {
      if constexpr (centered) moments.d = LaneTotal<C>(all);
      moments.squares = LaneTotal<C>(all_squares);
    } else {
      if constexpr (centered) moments.d.add(all);
      moments.squares.add(all_squares);
    }
  }
  return moments;
}

template <class Stored, bool centered>
__attribute__((noinline)) Moments<Compute<Stored>> moments_of_parts(const Stored* x,
                                                                    const Parts& parts,
                                                                    Compute<Stored> shift) {
  Moments<Compute<Stored>> moments[kMostParts];
  parts.each([&](int64_t part, int64_t begin, int64_t end) {
    moments[part] = moments_of_part<Stored, centered>(x + begin, end - begin, shift);
  });
  for (int64_t part = 1; part < parts.count; ++part) {
    moments[0].d.add(moments[part].d);
    moments[0].squares.add(moments[part].squares);
  }
  return moments[0];
}

template <class Stored, bool centered>
LAYERNORM_INLINE Moments<Compute<Stored>> moments_of(const Stored* x, const Parts& parts,
                                                     Compute<Stored> shift) {
  if (parts.count > 1) return moments_of_parts<Stored, centered>(x, parts, shift);
  return moments_of_part<Stored, centered>(x, parts.cols, shift);
}

// The first four vectors of a row, or all of a shorter one, added up: lanes of an estimate of its
// sum. The mean of these elements is the first guess of the row's.
template <class Stored>
inline Vector<Compute<Stored>> sum_of_first(const Stored* x, int64_t cols) {
  using C = Compute<Stored>;
  constexpr int64_t W = lanes<C>;
  if (cols >= 4 * W) {
    Vector<C> v[4];
    load_four(x, v);
    return (v[0] + v[1]) + (v[2] + v[3]);
  }
  Vector<C> sum = {};
  int64_t col = 0;
  for (; col + W <= cols; col += W) sum += load(x + col);
  if (col < cols) sum += load_first(x + col, cols - col);
  return sum;
}

// A guess of a row's mean with half of a double's digits: an element far from it, which counts most in
// the squares, then has an exact d.
inline FloatVector as_shift(FloatVector guess) { return guess; }
inline DoubleVector as_shift(DoubleVector guess) { return upper_half(guess); }

// The sums of one row: the same as among others, without the steps that pay off for several. Not
// inlined, so that those keep their registers.
template <class Stored, bool centered, int64_t capacity>
__attribute__((noinline)) void sum_a_row(const Stored* x, const Parts& parts,
                                         Batch<Compute<Stored>, capacity>& batch) {
  using C = Compute<Stored>;
  const int64_t cols = parts.cols;
  if constexpr (centered) {
    const C guessed = static_cast<C>(std::min(cols, 4 * lanes<C>));
    store(batch.shift, as_shift(broadcast(sum_of_lanes(sum_of_first(x, cols)) / guessed)));
  }
  const Moments<C> moments = moments_of<Stored, centered>(x, parts, batch.shift[0]);
  if constexpr (centered) store_doubles(batch.sum, broadcast(moments.d.sum()));
  double rest = 0;
  store_doubles(batch.squares, broadcast(moments.squares.sum_in_two(&rest)));
  store_doubles(batch.rest, broadcast(rest));
}

// Sums are added over the lanes for lanes<double> rows together.
template <class Stored, bool centered, int64_t capacity>
inline void sum_rows(RowsOf<Stored> x, int64_t rows, const Parts& parts,
                     Batch<Compute<Stored>, capacity>& batch) {
  using C = Compute<Stored>;
  const int64_t cols = parts.cols;
  constexpr int64_t together = lanes<double>;
  if constexpr (centered) {
    const C guessed = static_cast<C>(std::min(cols, 4 * lanes<C>));
    for (int64_t first = 0; first < rows; first += together) {
      Vector<C> sums[together];
      for (int64_t k = 0; k < together; ++k)
        sums[k] = first + k < rows ? sum_of_first(x[first + k], cols) : Vector<C>{};
      C* shift = batch.shift + first;
      store_sums_of_lanes(shift, sums);
      for (int64_t k = 0; k < together; ++k) shift[k] /= guessed;
      if constexpr (sizeof(C) == sizeof(double)) store(shift, as_shift(load(shift)));
    }
  }
  for (int64_t first = 0; first < rows; first += together) {
    TotalsOfRows<C> sums, squares;
    for (int64_t k = 0; k < together; ++k) {
      Moments<C> moments = {};
      if (first + k < rows)
        moments = moments_of<Stored, centered>(x[first + k], parts, batch.shift[first + k]);
      if constexpr (centered) sums.put(k, moments.d);
      squares.put(k, moments.squares);
    }
    if constexpr (centered) store_doubles(batch.sum + first, sums.sums());
    store_doubles(batch.squares + first, squares.sums_in_two(batch.rest_of_squares(first)));
  }
}

// The statistics of `rows` <= capacity rows. Not inlined: one copy serves all sets of parameters.
template <class Stored, bool centered, int64_t capacity>
__attribute__((noinline)) void compute_statistics(RowsOf<Stored> x, int64_t rows,
                                                  const Parts& parts, double eps,
                                                  Batch<Compute<Stored>, capacity>& batch) {
  using C = Compute<Stored>;
  const double n = static_cast<double>(parts.cols);
  if constexpr (!centered) {
    const int64_t padded = (rows + lanes<double> - 1) / lanes<double> * lanes<double>;
    std::fill(batch.shift, batch.shift + padded, C{});
    std::fill(batch.sum, batch.sum + padded, 0.0);
  }
  if (rows == 1)
    sum_a_row<Stored, centered>(x[0], parts, batch);
  else
    sum_rows<Stored, centered>(x, rows, parts, batch);
  if constexpr (centered)
    batch.recenter(rows, n, kWellCentered, [&](int64_t row) {
      const Moments<C> moments = moments_of<Stored, centered>(x[row], parts, batch.shift[row]);
      batch.sum[row] = moments.d.sum();
      batch.squares[row] = moments.squares.sum_in_two(batch.rest_of_squares(row));
    });
  batch.finish(rows, n, [&](int64_t) { return broadcast(eps); });
}

// sum(x - mean) / cols: the residual, for statistics that came without it.
template <class Stored>
inline Compute<Stored> residual_of(Compute<Stored> mean, const Stored* x, const Parts& parts) {
  const double sum = moments_of<Stored, true>(x, parts, mean).d.sum();
  return static_cast<Compute<Stored>>(sum / static_cast<double>(parts.cols));
}
