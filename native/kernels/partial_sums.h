// The partial sums of the parameters' gradients, of which each block of rows has its own.
#pragma once

enum class Wanted { nothing, dweight, both };  // gradients of the parameters

// A block's partial sums of the parameters' gradients, unevaluated as high + low, in pack order.
// Rows are added to low; every kFoldRows rows, fold() moves the sum to high and leaves the rounding
// error in low, as Kahan summation does. After a fold, low is 0 where high is infinite or NaN. A
// block of at most kFoldRows rows has one sum, which both names mean.
template <class C>
struct PartialSums {
  C *dweight_high, *dweight_low, *dbias_high, *dbias_low;

  PartialSums(const BackwardTask& task, int64_t block) {
    const Shape& shape = task.job->problem.shape;
    const int64_t cols = shape.cols, low = has_low(shape, task.units_per_block) ? cols : 0;
    dweight_high = static_cast<C*>(task.partials) + 2 * (cols + low) * block;
    dweight_low = dweight_high + low;
    dbias_high = dweight_low + cols;
    dbias_low = dbias_high + low;
  }
  bool have_low() const { return dweight_low != dweight_high; }
  void clear(int64_t begin, int64_t end) const {
    for (C* sum : {dweight_high, dweight_low, dbias_high, dbias_low})
      std::fill(sum + begin, sum + end, C{});
  }
};

template <class C>
__attribute__((noinline)) void fold(C* high, C* low, int64_t begin, int64_t end) {
  int64_t col = begin;
  for (; col + lanes<C> <= end; col += lanes<C>) {
    const Vector<C> a = load(high + col), b = load(low + col), sum = a + b;
    store(high + col, sum);
    store(low + col, zero_unless_finite(two_sum_error(a, b, sum), sum));
  }
  for (; col < end; ++col) {
    const C rest = low[col];
    low[col] = 0;
    add_compensated(high[col], low[col], rest);
  }
}

// Adds a scaled row to the parameters' gradients.
template <class Stored, bool centered>
void accumulate_scaled_row(const ScaledStatistics<Stored>& statistics, RowOf<const Stored> x,
                           RowOf<const Stored> dy, const PartialSums<Compute<Stored>>& sums,
                           int64_t cols, Wanted wanted) {
  using C = Compute<Stored>;
  const ScaledNormalizer<C> normalizer = statistics.normalizer();
  AlongRow<Stored>{cols}.each([&](const auto& at, int) {
    const Vector<C> dy_here = at.read(dy),
                    xhat = normalizer.template normalized<centered>(at.read(x));
    at.add(sums.dweight_low, dy_here * xhat);
    if (wanted == Wanted::both) at.add(sums.dbias_low, dy_here);
  });
}
