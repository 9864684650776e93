// dx of a row whose g = dy * weight lies along xhat: what is left of it is small beside its terms,
// so mean(g * xhat) has to be more accurate than elsewhere. Derived in docs/derivation.md.
#pragma once

// rstd * mean(g * xhat) as such a row needs it. What the roundings of rstd and xhat have in common
// over the row would count twice in dx: in xhat and in this mean. But mean(xhat^2) + eps * rstd^2
// is 1 without them, so its distance from 1 says what to take back. A larger distance, or NaN, is
// not theirs: the statistics are not those of x and eps. squares_beyond_n is sum(xhat^2) - n.
template <class C>
inline DoubleVector slope_along_xhat(DoubleVector sum_g_xhat, DoubleVector squares_beyond_n,
                                     DoubleVector rstd, DoubleVector eps, double n) {
  const DoubleVector of_n = broadcast(n), mean = sum_g_xhat / of_n, slope = rstd * mean;
  const DoubleVector excess = squares_beyond_n / of_n + eps * rstd * rstd;
  constexpr double most = 16 * static_cast<double>(std::numeric_limits<C>::epsilon());
  const DoubleVector corrected = slope + (two_product_error(rstd, mean, slope) - slope * excess);
  return magnitude(excess) <= broadcast(most) ? corrected : slope;
}
template <class C>
inline double slope_along_xhat(double sum_g_xhat, double squares_beyond_n, double rstd, double eps,
                               double n) {
  return slope_along_xhat<C>(broadcast(sum_g_xhat), broadcast(squares_beyond_n), broadcast(rstd),
                             broadcast(eps), n)[0];
}

// Whether dx may be small by cancellation: no |g| of the row's first vector is above
// 4 |mean(g * xhat)|. Where one is, dx's scale is too, and the errors of the mean weigh a quarter.
template <class Stored, bool has_weight>
inline bool may_cancel(Vector<Compute<Stored>> mean_g_xhat, const Stored* dy,
                       const Compute<Stored>* weight, int64_t cols) {
  using C = Compute<Stored>;
  Vector<C> g;
  if (cols < pack_size<Stored>) {
    const int64_t count = std::min(lanes<C>, cols);
    g = load_first(dy, count);
    if constexpr (has_weight) g *= load_first(weight, count);
  } else {
    g = load_pack(dy).part[0];
    if constexpr (has_weight) g *= load(weight);
  }
  // Squares that overflow or underflow count as small, which costs time alone.
  return all_at_most(g * g, mean_g_xhat * mean_g_xhat * broadcast(C{16}));
}

// The sums that slope_along_xhat() needs, each product added in double.
template <class Stored, bool centered, bool has_weight>
struct SumsAlongXhat {
  using C = Compute<Stored>;
  static constexpr int64_t W = lanes<C>;

  const Normalizer<C> normalizer;
  const Stored *x, *dy;
  const C* weight;
  LaneTotal<C> g_xhat = {}, squares = {};

  Vector<C> g(Vector<C> dy_here, Vector<C> w) const { return has_weight ? dy_here * w : dy_here; }

  void term(Vector<C> x_here, Vector<C> dy_here, Vector<C> w, int64_t count) {
    Vector<C> xhat = normalizer.template normalized<centered>(x_here);
    if (count < W) xhat = keep_first(xhat, count);
    g_xhat.add(g(dy_here, w) * xhat);
    squares.add(xhat * xhat);
  }
  template <bool streamed>
  void pack(int64_t col) {
    Pack<Stored> w = {};
    const Pack<Stored> x_here = load_pack(x + col), dy_here = load_pack(dy + col);
    if constexpr (has_weight) w = load_ordered<Stored>(weight + col);
    for (int64_t part = 0; part < vectors_in_pack<Stored>; ++part)
      term(x_here.part[part], dy_here.part[part], w.part[part], W);
  }
  void tail(int64_t col, int64_t count) {
    term(load_first(x + col, count), load_first(dy + col, count),
         has_weight ? load_first(weight + col, count) : Vector<C>{}, count);
  }
};
