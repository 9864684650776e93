// The last step of the backward: the blocks' partial sums of the parameters' gradients, added and
// rounded. A column whose sum left the range of the compute type on its way is summed again over all
// rows, in double, where it may come back into range.
#pragma once

struct ColumnSums {
  double dweight, dbias;
};

template <class Stored, bool centered>
ColumnSums sum_wide_column(const BackwardTask& task, int64_t col) {
  using C = Compute<Stored>;
  const Problem& problem = task.job->problem;
  const Shape& shape = problem.shape;
  // Products of doubles overflow double; terms this leaves too small would not be seen in the sum.
  const double scale = sizeof(Stored) == sizeof(double) ? 0x1p-100 : 1;
  WideSum dweight, dbias;
  for (int64_t row = 0; row < shape.outer * shape.inner; ++row) {
    const auto row_of = [&](const Array& array) {
      const auto* data = static_cast<const Stored*>(array.data);
      return RowOf<const Stored>{
          data + row / shape.inner * array.outer_stride + row % shape.inner, array.col_stride};
    };
    const double dy = scale * static_cast<double>(scalar_from(row_of(task.job->dy)[col]));
    dbias.add(dy);
    if (dy != dy) break;
    if (!task.job->dweight) continue;
    const Statistics& saved = problem.statistics;
    RowStatistics<C> statistics = {0, 0, static_cast<const C*>(saved.rstd)[row], true};
    const RowOf<const Stored> x = row_of(problem.x);
    if constexpr (centered) {
      statistics.mean = static_cast<const C*>(saved.mean)[row];
      if (saved.residual) statistics.residual = static_cast<const C*>(saved.residual)[row];
    }
    const WideStatistics wide =
        wide_from_saved<Stored, centered>(statistics, x, shape.cols, problem.eps);
    dweight.add(dy * wide.normalized(static_cast<double>(scalar_from(x[col]))));
  }
  return {dweight.value() / scale, dbias.value() / scale};
}

// A column's partial sums, one block after the other.
template <class C>
inline C reduce_blocks(const C* high, const C* low, int64_t blocks, int64_t stride) {
  C sum = 0, rest = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    add_compensated(sum, rest, high[block * stride]);
    rest += low[block * stride];
  }
  return std::isfinite(sum) ? sum + rest : sum;
}

// Columns [begin, end) of the parameters' gradients, rounded to their type.
template <class Stored, class Parameter>
void reduce_partial_sums(const BackwardTask& task, int64_t begin, int64_t end) {
  using C = Compute<Stored>;
  const Backward& job = *task.job;
  const int64_t cols = job.problem.shape.cols;
  const bool in_packs = job.problem.shape.inner == 1;
  for (int64_t col = begin; col < end; ++col) {
    const int64_t at = in_packs ? position_in_row<Stored>(col, cols) : col;
    const C* first = static_cast<const C*>(task.partials) + at;
    C dweight = 0, dbias = 0;
    if (job.dweight) dweight = reduce_blocks(first, first + cols, task.blocks, 4 * cols);
    if (job.dbias)
      dbias = reduce_blocks(first + 2 * cols, first + 3 * cols, task.blocks, 4 * cols);
    if (!std::isfinite(dweight) || !std::isfinite(dbias)) {
      const ColumnSums sums = job.problem.centered ? sum_wide_column<Stored, true>(task, col)
                                                   : sum_wide_column<Stored, false>(task, col);
      dweight = static_cast<C>(sums.dweight);
      dbias = static_cast<C>(sums.dbias);
    }
    if (job.dweight) static_cast<Parameter*>(job.dweight)[col] = stored_from<Parameter>(dweight);
    if (job.dbias) static_cast<Parameter*>(job.dbias)[col] = stored_from<Parameter>(dbias);
  }
}
