// The last step of the backward: adds the blocks' partial sums of the parameters' gradients and
// rounds them. A column whose sum overflowed or whose terms underflowed is summed again over all
// rows, in double.
#pragma once

template <class Stored>
inline RowOf<const Stored> dy_of_row(const BackwardTask& task, int64_t row) {
  const Array& dy = task.job->dy;
  const int64_t inner = task.job->problem.shape.inner;
  return {static_cast<const Stored*>(dy.data) + row / inner * dy.outer_stride + row % inner,
          dy.col_stride};
}

struct ColumnSums {
  double dweight, dbias;
};

// The sums of one column, in double, scaled by 2^exponent and back: terms of float64 may need it.
template <class Stored, bool centered>
ColumnSums sum_scalar_column(const BackwardTask& task, int64_t col, int exponent) {
  using C = Compute<Stored>;
  const Problem& problem = task.job->problem;
  const Shape& shape = problem.shape;
  const double scale = std::ldexp(1.0, exponent);
  CompensatedSum dweight, dbias;
  for (int64_t row = 0; row < shape.rows(); ++row) {
    const double dy = scale * static_cast<double>(to_compute(dy_of_row<Stored>(task, row)[col]));
    if (dy != dy) return {dy, dy};
    dbias.add(dy);
    if (!task.job->dweight) continue;
    const Statistics& saved = problem.statistics;
    RowStatistics<C> statistics = {0, 0, static_cast<const C*>(saved.rstd)[row], true};
    const RowOf<const Stored> x = {static_cast<const Stored*>(problem.x.data) +
                                       row / shape.inner * problem.x.outer_stride +
                                       row % shape.inner,
                                   problem.x.col_stride};
    if constexpr (centered) {
      statistics.mean = static_cast<const C*>(saved.mean)[row];
      if (saved.residual) statistics.residual = static_cast<const C*>(saved.residual)[row];
    }
    // A NaN stays NaN: skip the pass over the row that recomputing its statistics would take.
    if (statistics.rstd != statistics.rstd) {
      dweight.add(static_cast<double>(statistics.rstd));
      continue;
    }
    const ScalarStatistics scalar =
        scalar_statistics_from<Stored, centered>(statistics, x, shape.cols, problem.eps);
    dweight.add(dy * scalar.normalized(static_cast<double>(to_compute(x[col]))));
  }
  return {dweight.value() / scale, dbias.value() / scale};
}

// Adds columns [begin, end) of all blocks' partial sums, one block after another, into the first
// block's. Where a sum is not finite, neither is the result.
template <class C>
void reduce_blocks(C* high, const C* low, int64_t blocks, int64_t stride, int64_t begin,
                   int64_t end) {
  constexpr int64_t W = lanes<C>;
  int64_t col = begin;
  for (; col + W <= end; col += W) {
    Vector<C> sum = load(high + col), rest = load(low + col);
    for (int64_t block = 1; block < blocks; ++block) {
      const Vector<C> next = load(high + block * stride + col), before = sum;
      sum += next;
      rest += two_sum_error(before, next, sum) + load(low + block * stride + col);
    }
    store(high + col, sum + zero_unless_finite(rest, sum));
  }
  for (; col < end; ++col) {
    C sum = high[col], rest = low[col];
    for (int64_t block = 1; block < blocks; ++block) {
      add_compensated(sum, rest, high[block * stride + col]);
      rest += low[block * stride + col];
    }
    high[col] = std::isfinite(sum) ? sum + rest : sum;
  }
}

// Columns [begin, end) of the parameters' gradients, at most kReduceCols of them.
template <class Stored, class Parameter>
struct ReduceStrip {
  using C = Compute<Stored>;

  const BackwardTask& task;
  const int64_t begin, end;
  const Problem& problem = task.job->problem;
  const int64_t cols = problem.shape.cols;
  const bool in_pack_order = problem.shape.inner == 1;
  bool has_largest = false;
  C largest[kReduceCols] = {};  // |dy| of each column

  void find_largest() {
    has_largest = true;
    for (int64_t row = 0; row < problem.shape.rows(); ++row) {
      const RowOf<const Stored> dy = dy_of_row<Stored>(task, row);
      for (int64_t col = begin; col < end; ++col) {
        const C magnitude = std::fabs(to_compute(dy[col]));
        largest[col - begin] = magnitude > largest[col - begin] ? magnitude : largest[col - begin];
      }
    }
  }

  ColumnSums sum_again(int64_t col, int exponent) const {
    if (sizeof(C) == sizeof(float)) exponent = 0;
    return problem.centered ? sum_scalar_column<Stored, true>(task, col, exponent)
                            : sum_scalar_column<Stored, false>(task, col, exponent);
  }

  // Only overflow matters here: additions are exact in the subnormal range.
  double dbias(int64_t col, C value) {
    return std::isfinite(value) ? static_cast<double>(value) : sum_again(col, -100).dbias;
  }
  // A tiny sum, or zero, has lost bits only if its terms are tiny, not if they cancel.
  double dweight(int64_t col, C value) {
    if (!std::isfinite(value)) return sum_again(col, -100).dweight;
    if (std::fabs(static_cast<double>(value)) >= kTiny<C>) return static_cast<double>(value);
    if (!has_largest) find_largest();
    const C dy = largest[col - begin];
    const bool tiny = dy > 0 && static_cast<double>(dy) < kTiny<C>;
    return tiny ? sum_again(col, 100).dweight : static_cast<double>(value);
  }

  // `sums` are in pack order where rows are contiguous. value_of(col, sum) corrects a sum that
  // overflowed or underflowed.
  template <class F>
  void write(const C* sums, void* to, C least, F value_of) {
    auto* gradient = static_cast<Parameter*>(to);
    int64_t col = begin;
    if constexpr (std::is_same<Stored, Parameter>::value) {
      const int64_t whole = std::min(end, cols - cols % pack_size<Stored>);
      for (; in_pack_order && col < whole; col += pack_size<Stored>) {
        const Pack<Stored> values = load_ordered<Stored>(sums + col);
        bool ordinary = true;
        for (const Vector<C>& part : values.part)
          ordinary = ordinary && all_finite_from(part, least);
        if (!ordinary) break;
        store_pack<false>(gradient + col, values);
      }
    }
    for (; col < end; ++col) {
      const C sum = sums[in_pack_order ? position_in_row<Stored>(col, cols) : col];
      gradient[col] = to_stored<Parameter>(static_cast<C>(value_of(col, sum)));
    }
  }

  void run() {
    C* sums = static_cast<C*>(task.partials);
    if (void* to = task.job->dweight) {
      reduce_blocks(sums, sums + cols, task.blocks, 4 * cols, begin, end);
      write(sums, to, static_cast<C>(kTiny<C>),
            [&](int64_t col, C sum) { return dweight(col, sum); });
    }
    if (void* to = task.job->dbias) {
      sums += 2 * cols;
      reduce_blocks(sums, sums + cols, task.blocks, 4 * cols, begin, end);
      write(sums, to, 0, [&](int64_t col, C sum) { return dbias(col, sum); });
    }
  }
};

// Strips [begin, end) of kReduceCols columns each.
template <class Stored, class Parameter>
void reduce_partial_sums(const BackwardTask& task, int64_t begin, int64_t end) {
  const int64_t cols = task.job->problem.shape.cols;
  for (int64_t strip = begin; strip < end; ++strip)
    ReduceStrip<Stored, Parameter>{task, strip * kReduceCols,
                                   std::min(cols, (strip + 1) * kReduceCols)}
        .run();
}
