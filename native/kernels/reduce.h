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
      return RowOf<const Stored>{data + row / shape.inner * array.outer_stride + row % shape.inner,
                                 array.col_stride};
    };
    const double dy = scale * static_cast<double>(scalar_from(row_of(task.job->dy)[col]));
    if (dy != dy) return {dy, dy};
    dbias.add(dy);
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

// The blocks' partial sums of [begin, end), one block after the other; left in the first block's
// place. Where a sum is not finite, neither is the result.
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

// One of the two gradients, from its sums (in the order of packs, for rows) rounded to its type.
template <class Stored, class Parameter, class F>
void write_gradient(const Compute<Stored>* sums, bool in_packs, int64_t cols, int64_t begin,
                    int64_t end, Parameter* gradient, F sum_again) {
  using C = Compute<Stored>;
  int64_t col = begin;
  if constexpr (std::is_same<Stored, Parameter>::value) {
    const int64_t whole = std::min(end, cols - cols % pack_size<Stored>);
    for (; in_packs && col < whole; col += pack_size<Stored>) {
      const Pack<Stored> values = load_ordered<Stored>(sums + col);
      bool finite = true;
      for (const Vector<C>& part : values.part) finite = finite && all_finite(part);
      if (!finite) break;
      store_pack<false>(gradient + col, values);
    }
  }
  for (; col < end; ++col) {
    C value = sums[in_packs ? position_in_row<Stored>(col, cols) : col];
    if (!std::isfinite(value)) value = static_cast<C>(sum_again(col));
    gradient[col] = stored_from<Parameter>(value);
  }
}

// Strips [begin, end) of the parameters' gradients, of kReduceCols columns each.
template <class Stored, class Parameter>
void reduce_partial_sums(const BackwardTask& task, int64_t begin, int64_t end) {
  using C = Compute<Stored>;
  const Backward& job = *task.job;
  const int64_t cols = job.problem.shape.cols;
  const bool in_packs = job.problem.shape.inner == 1;
  const auto sum_again = [&](int64_t col) {
    return job.problem.centered ? sum_wide_column<Stored, true>(task, col)
                                : sum_wide_column<Stored, false>(task, col);
  };
  C* sums = static_cast<C*>(task.partials);
  const int64_t first = begin * kReduceCols, last = std::min(cols, end * kReduceCols);
  if (job.dweight) {
    reduce_blocks(sums, sums + cols, task.blocks, 4 * cols, first, last);
    write_gradient<Stored>(sums, in_packs, cols, first, last, static_cast<Parameter*>(job.dweight),
                           [&](int64_t col) { return sum_again(col).dweight; });
  }
  if (job.dbias) {
    sums += 2 * cols;
    reduce_blocks(sums, sums + cols, task.blocks, 4 * cols, first, last);
    write_gradient<Stored>(sums, in_packs, cols, first, last, static_cast<Parameter*>(job.dbias),
                           [&](int64_t col) { return sum_again(col).dbias; });
  }
}
