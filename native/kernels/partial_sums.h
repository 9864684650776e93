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

// Adds to high + low, exactly but for the rounding of low. After an overflow, low stays finite.
template <class C>
inline void add_first(C* high, C* low, Vector<C> v, int64_t count) {
  const bool whole = count == lanes<C>;
  Vector<C> sum = whole ? load(high) : load_first(high, count);
  Vector<C> rest = whole ? load(low) : load_first(low, count);
  add_compensated_vector(sum, rest, v);
  if (low == high) rest = sum;
  if (whole) {
    store(high, sum);
    store(low, rest);
  } else {
    store_first(high, sum, count);
    store_first(low, rest, count);
  }
}

// Adds a scaled row to the parameters' gradients, pack by pack.
template <class Stored>
void accumulate_scaled_row(const ScaledStatistics<Stored>& statistics, RowOf<const Stored> x,
                           RowOf<const Stored> dy, const PartialSums<Compute<Stored>>& sums,
                           int64_t cols, Wanted wanted) {
  using C = Compute<Stored>;
  constexpr int64_t size = pack_size<Stored>;
  const AlongRow row = {cols};
  for (int64_t col = 0; col < cols; col += size) {
    C dweight[size], dbias[size];
    const int64_t count = std::min(size, cols - col);
    for (int64_t at = 0; at < count; at += AlongRow::W) {
      const int64_t step = (col + at) / AlongRow::W;
      const DoubleVector dy_here = row.read(dy, step);
      store_doubles(dweight + at, dy_here * statistics.normalized(row.read(x, step)));
      store_doubles(dbias + at, dy_here);
    }
    if (count == size) {
      in_pack_order<Stored>(dweight);
      in_pack_order<Stored>(dbias);
    }
    for (int64_t at = 0; at < count; at += lanes<C>) {
      const int64_t first = col + at, lanes_here = std::min(lanes<C>, count - at);
      add_first(sums.dweight_high + first, sums.dweight_low + first, load(dweight + at),
                lanes_here);
      if (wanted == Wanted::both)
        add_first(sums.dbias_high + first, sums.dbias_low + first, load(dbias + at), lanes_here);
    }
  }
}
