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

template <class Stored>
inline RowOf<const Stored> x_of_row(const Problem& problem, int64_t row) {
  const int64_t inner = problem.shape.inner;
  return {static_cast<const Stored*>(problem.x.data) + row / inner * problem.x.outer_stride +
              row % inner,
          problem.x.col_stride};
}

template <class Stored, bool centered>
ScalarStatistics scalar_statistics_of_row(const Problem& problem, int64_t row) {
  using C = Compute<Stored>;
  const Statistics& saved = problem.statistics;
  RowStatistics<C> statistics = {0, 0, static_cast<const C*>(saved.rstd)[row], true};
  if constexpr (centered) {
    statistics.mean = static_cast<const C*>(saved.mean)[row];
    if (saved.residual) statistics.residual = static_cast<const C*>(saved.residual)[row];
  }
  // A NaN stays NaN: skip the pass over the row that recomputing its statistics would take.
  if (statistics.rstd != statistics.rstd) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    return {0, nan, nan, nan};
  }
  return scalar_statistics_from<Stored, centered>(statistics, x_of_row<Stored>(problem, row),
                                                  problem.shape.cols, problem.eps);
}

// A column that is summed again, in double, scaled by 2^exponent and back: terms of float64 may
// need it.
struct ScalarColumn {
  int64_t col;
  double scale;
  CompensatedSum sum;
};

// Sums the columns in one pass over the rows, as a row's statistics may take a pass over the row: dy
// for dbias, or dy * xhat for dweight. Calls done(col, sum) for each.
template <class Stored, bool centered, class F>
void sum_scalar_columns(const BackwardTask& task, bool of_dweight, ScalarColumn* columns,
                        int64_t count, F done) {
  const Problem& problem = task.job->problem;
  for (int64_t row = 0; row < problem.shape.rows() && count > 0; ++row) {
    const RowOf<const Stored> dy = dy_of_row<Stored>(task, row), x = x_of_row<Stored>(problem, row);
    ScalarStatistics scalar = {};
    if (of_dweight) scalar = scalar_statistics_of_row<Stored, centered>(problem, row);
    for (int64_t at = count - 1; at >= 0; --at) {
      ScalarColumn& column = columns[at];
      double term = column.scale * static_cast<double>(to_compute(dy[column.col]));
      if (of_dweight) term *= scalar.normalized(static_cast<double>(to_compute(x[column.col])));
      if (term == term) {
        column.sum.add(term);
        continue;
      }
      done(column.col, term);  // a NaN stays NaN
      column = columns[--count];
    }
  }
  for (int64_t at = 0; at < count; ++at)
    done(columns[at].col, columns[at].sum.value() / columns[at].scale);
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
  C largest[kReduceCols] = {};         // |dy| of each column
  double corrected[kReduceCols] = {};  // the sum of each column

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

  // The exponent to sum a column of dweight again with; 0 where its sum is right. A tiny sum, or
  // zero, has lost bits only if its terms are tiny, not if they cancel.
  int exponent_of_dweight(int64_t col, C value) {
    if (!std::isfinite(value)) return -100;
    if (std::fabs(static_cast<double>(value)) >= kTiny<C>) return 0;
    if (!has_largest) find_largest();
    const C dy = largest[col - begin];
    return dy > 0 && static_cast<double>(dy) < kTiny<C> ? 100 : 0;
  }
  // Only overflow matters here: additions are exact in the subnormal range.
  int exponent_of_dbias(C value) const { return std::isfinite(value) ? 0 : -100; }

  // Takes the sums of the columns from `from` on, in double, those that overflowed or underflowed
  // summed again.
  template <class F>
  void sum_again(const C* sums, int64_t from, bool of_dweight, F exponent_of) {
    ScalarColumn columns[kReduceCols];
    int64_t count = 0;
    for (int64_t col = from; col < end; ++col) {
      const C value = sums[place(col)];
      const int exponent = exponent_of(col, value);
      corrected[col - begin] = static_cast<double>(value);
      if (exponent == 0) continue;
      columns[count++] = {col, std::ldexp(1.0, sizeof(C) == sizeof(float) ? 0 : exponent), {}};
    }
    const auto done = [&](int64_t col, double sum) { corrected[col - begin] = sum; };
    if (problem.centered)
      sum_scalar_columns<Stored, true>(task, of_dweight, columns, count, done);
    else
      sum_scalar_columns<Stored, false>(task, of_dweight, columns, count, done);
  }

  int64_t place(int64_t col) const {
    return in_pack_order ? position_in_row<Stored>(col, cols) : col;
  }

  // `sums` are in pack order where rows are contiguous. Those that are not at least `least` in size,
  // or not finite, may have to be summed again.
  template <class F>
  void write(const C* sums, void* to, C least, bool of_dweight, F exponent_of) {
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
    if (col == end) return;
    sum_again(sums, col, of_dweight, exponent_of);
    for (; col < end; ++col)
      gradient[col] = to_stored<Parameter>(static_cast<C>(corrected[col - begin]));
  }

  void run() {
    C* sums = static_cast<C*>(task.partials);
    if (void* to = task.job->dweight) {
      reduce_blocks(sums, sums + cols, task.blocks, 4 * cols, begin, end);
      write(sums, to, static_cast<C>(kTiny<C>), true,
            [&](int64_t col, C sum) { return exponent_of_dweight(col, sum); });
    }
    if (void* to = task.job->dbias) {
      sums += 2 * cols;
      reduce_blocks(sums, sums + cols, task.blocks, 4 * cols, begin, end);
      write(sums, to, 0, false, [&](int64_t, C sum) { return exponent_of_dbias(sum); });
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
