// The last step of the backward: adds the blocks' partial sums of the parameters' gradients and
// rounds them. A column whose sum overflowed or whose terms underflowed is summed again over all
// rows, in double.
#pragma once

inline int64_t offset_of_row(const Problem& problem, const Strides& strides, int64_t row) {
  const int64_t inner = problem.shape.inner;
  return offset_of(problem.shape, strides, row / inner) + row % inner;
}

template <class Stored>
inline RowOf<const Stored> row_of(const Problem& problem, const Array& array, int64_t row) {
  return {static_cast<const Stored*>(array.data) + offset_of_row(problem, array.strides, row),
          array.col_stride};
}

// Rows come one after the other; a tile of strided ones is prepared with the first.
inline void prepare_row(const BackwardTask& task, int64_t row, int64_t begin, int64_t end) {
  if (!task.around) return;
  const int64_t inner = task.job->problem.shape.inner, tiles = (inner + kTileRows - 1) / kTileRows;
  if (row % inner % kTileRows != 0) return;
  task.around->prepare(row / inner * tiles + row % inner / kTileRows, begin, end);
}

// Rows that are read together, so that what belongs to a column stays in registers, and of strided
// rows a cache line in the cache. One, where the next replaces it.
constexpr int64_t kRowsTogether = 8;
inline int64_t rows_together(const BackwardTask& task) { return task.around ? 1 : kRowsTogether; }

// A row. The one kRowsTogether rows on is prefetched: the processor does not foresee so few elements.
template <class Stored>
inline RowOf<const Stored> prefetching_row_of(const Problem& problem, const Array& array,
                                              int64_t row, int64_t begin, int64_t count) {
  constexpr int64_t step = kLine / static_cast<int64_t>(sizeof(Stored));
  if (array.col_stride == 1 && row + kRowsTogether < problem.shape.rows()) {
    const Stored* const next = &row_of<Stored>(problem, array, row + kRowsTogether)[begin];
    for (int64_t at = 0; at < count; at += step) __builtin_prefetch(next + at, 0, 2);
  }
  return row_of<Stored>(problem, array, row);
}

// lanes<double> elements, or the first of them.
template <class Stored>
inline DoubleVector load_first_doubles(const Stored* from, int64_t count) {
  if (count == lanes<double>) return load_doubles(from);
  Stored padded[lanes<double>] = {};
  std::copy(from, from + count, padded);
  return load_doubles(padded);
}

// Columns that are summed again over all rows, in double: dy for dbias, or dy * xhat for dweight.
// Each is scaled by a power of two and back, which terms of float64 may need.
template <class Stored, bool centered>
struct SummedColumns {
  using C = Compute<Stored>;
  static constexpr int64_t W = lanes<double>;

  const BackwardTask& task;
  const int64_t begin, count;
  const bool of_dweight;
  const Problem& problem = task.job->problem;
  double scale[kReduceCols] = {};
  bool wanted[kReduceCols / W] = {};  // of each vector of columns: whether it is summed
  DoubleVector sum[kReduceCols / W] = {}, rest[kReduceCols / W] = {};

  double value(int64_t col) const {
    const int64_t at = (col - begin) / W, lane = (col - begin) % W;
    return (sum[at][lane] + rest[at][lane]) / scale[col - begin];
  }

  struct Row {
    RowOf<const Stored> dy, x;
    NormalizerInDouble normalizer;
  };
  Row row_at(int64_t row) const {
    Row result = {prefetching_row_of<Stored>(problem, task.job->dy, row, begin, count), {}, {}};
    if (!of_dweight) return result;
    result.x = prefetching_row_of<Stored>(problem, problem.x, row, begin, count);
    if (problem.shape.inner == 1)
      result.normalizer = normalizer(AlongRow<Stored>{problem.shape.cols}, row);
    else
      result.normalizer = normalizer(AcrossRows<Stored>(problem.shape.cols, 1), row);
    return result;
  }
  // Of the statistics that the forward has saved, or computed again.
  template <class Rows>
  NormalizerInDouble normalizer(const Rows& rows, int64_t row) const {
    const Statistics& from = problem.statistics;
    const int64_t at = offset_of_row(problem, from.strides, row);
    const RowOf<const Stored> x = row_of<Stored>(problem, problem.x, row);
    RowStatistics<C> saved = {0, 0, static_cast<const C*>(from.rstd)[at], true};
    if constexpr (centered) {
      saved.mean = static_cast<const C*>(from.mean)[at];
      saved.residual = from.residual ? static_cast<const C*>(from.residual)[at]
                                     : residual_of(saved.mean, x, problem.shape.cols);
    }
    return scaled_statistics_from<Stored, centered>(&saved, rows, x, problem.eps).in_double();
  }

  void add(const Row* rows, int64_t together) {
    for (int64_t at = 0; at * W < count; ++at) {
      if (!wanted[at]) continue;
      const int64_t first = begin + at * W, columns = std::min(W, count - at * W);
      const DoubleVector scales = load_doubles(scale + at * W);
      DoubleVector total = sum[at];
      for (const Row* row = rows; row < rows + together; ++row) {
        DoubleVector term = elements(row->dy, first, columns) * scales;
        if (of_dweight) term *= row->normalizer(elements(row->x, first, columns));
        if constexpr (sizeof(C) == sizeof(double))
          add_compensated_vector(total, rest[at], term);
        else
          total += term;  // double has bits to spare
      }
      sum[at] = total;
    }
  }
  DoubleVector elements(RowOf<const Stored> row, int64_t first, int64_t columns) const {
    if (row.stride == 1) return load_first_doubles(&row[first], columns);
    Stored gathered[W] = {};
    for (int64_t k = 0; k < columns; ++k) gathered[k] = row[first + k];
    return load_doubles(gathered);
  }

  // Whether a row's xhat is NaN, and so its share of each column of dweight.
  bool any_xhat_is_nan() const {
    const Statistics& from = problem.statistics;
    const auto* rstd = static_cast<const C*>(from.rstd);
    for (int64_t row = 0; row < problem.shape.rows(); ++row)
      if (std::isnan(rstd[offset_of_row(problem, from.strides, row)])) return true;
    return false;
  }

  bool all_are_nan() const {
    bool all = true;
    for (int64_t at = 0; at * W < count; ++at)
      for (int64_t lane = 0; wanted[at] && lane < std::min(W, count - at * W); ++lane)
        all = all && std::isnan(sum[at][lane]);
    return all;
  }

  __attribute__((noinline)) void add_all_rows() {
    const int64_t cols = problem.shape.cols;
    if (of_dweight && any_xhat_is_nan()) {
      for (DoubleVector& each : sum) each = broadcast(std::numeric_limits<double>::quiet_NaN());
      return;
    }
    const int64_t all = problem.shape.rows(), most = rows_together(task);
    for (int64_t first = 0; first < all; first += most) {
      if (first % 16 == 0 && all_are_nan()) return;
      prepare_row(task, first, 0, cols);
      Row rows[kRowsTogether];
      const int64_t together = std::min(most, all - first);
      for (int64_t k = 0; k < together; ++k) rows[k] = row_at(first + k);
      add(rows, together);
    }
  }
};

// Adds columns [begin, end) of all blocks' partial sums, one block after another, into the first
// block's. Where a sum is not finite, neither is the result.
template <class C, bool has_low>
void reduce_blocks(C* high, const C* low, int64_t blocks, int64_t stride, int64_t begin,
                   int64_t end) {
  constexpr int64_t W = lanes<C>;
  int64_t col = begin;
  for (; col + W <= end; col += W) {
    Vector<C> sum = load(high + col), rest = {};
    if constexpr (has_low) rest = load(low + col);
    for (int64_t block = 1; block < blocks; ++block) {
      const Vector<C> next = load(high + block * stride + col), before = sum;
      sum += next;
      Vector<C> error = two_sum_error(before, next, sum);
      if constexpr (has_low) error += load(low + block * stride + col);
      rest += error;
    }
    store(high + col, sum + zero_unless_finite(rest, sum));
  }
  for (; col < end; ++col) {
    C sum = high[col], rest = has_low ? low[col] : C{};
    for (int64_t block = 1; block < blocks; ++block) {
      add_compensated(sum, rest, high[block * stride + col]);
      if constexpr (has_low) rest += low[block * stride + col];
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
    const int64_t all = problem.shape.rows(), most = rows_together(task);
    for (int64_t first = 0; first < all; first += most) {
      prepare_row(task, first, begin, end);
      RowOf<const Stored> rows[kRowsTogether];
      const int64_t together = std::min(most, all - first);
      for (int64_t k = 0; k < together; ++k)
        rows[k] = prefetching_row_of<Stored>(problem, task.job->dy, first + k, begin, end - begin);
      int64_t col = begin;
      for (; rows[0].stride == 1 && col + lanes<C> <= end; col += lanes<C>) {
        BitsOf<C> bits = bits_of<C>(load(largest + col - begin));
        for (int64_t k = 0; k < together; ++k)
          bits = larger(bits, bits_of_magnitude<C>(load(&rows[k][col])));
        store(largest + col - begin, reinterpret_cast<Vector<C>>(bits));
      }
      for (; col < end; ++col) {
        C& of_column = largest[col - begin];
        for (int64_t k = 0; k < together; ++k)
          of_column = std::max(of_column, std::fabs(to_compute(rows[k][col])));
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
    int exponent[kReduceCols];
    bool any = false;
    for (int64_t col = from; col < end; ++col) {
      const C value = sums[place(col)];
      corrected[col - begin] = static_cast<double>(value);
      exponent[col - begin] = exponent_of(col, value);
      any = any || exponent[col - begin] != 0;
    }
    if (!any) return;
    if (problem.centered)
      sum_again_as<true>(exponent, from, of_dweight);
    else
      sum_again_as<false>(exponent, from, of_dweight);
  }
  template <bool centered>
  void sum_again_as(const int* exponent, int64_t from, bool of_dweight) {
    SummedColumns<Stored, centered> columns = {task, begin, end - begin, of_dweight};
    std::fill(columns.scale, columns.scale + kReduceCols, 1.0);
    for (int64_t at = from - begin; at < end - begin; ++at) {
      if (exponent[at] == 0) continue;
      columns.wanted[at / lanes<double>] = true;
      if (sizeof(C) == sizeof(double)) columns.scale[at] = std::ldexp(1.0, exponent[at]);
    }
    columns.add_all_rows();
    for (int64_t col = from; col < end; ++col)
      if (exponent[col - begin] != 0) corrected[col - begin] = columns.value(col);
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

  // Of all blocks, into `high`.
  void add_blocks(C* high, const C* low) const {
    const PartialSums<C> first(task, 0);
    const int64_t stride = PartialSums<C>(task, 1).dweight_high - first.dweight_high;
    if (first.have_low())
      reduce_blocks<C, true>(high, low, task.blocks, stride, begin, end);
    else
      reduce_blocks<C, false>(high, low, task.blocks, stride, begin, end);
  }

  void run() {
    const PartialSums<C> sums(task, 0);
    if (void* to = task.job->dweight) {
      add_blocks(sums.dweight_high, sums.dweight_low);
      write(sums.dweight_high, to, static_cast<C>(kTiny<C>), true,
            [&](int64_t col, C sum) { return exponent_of_dweight(col, sum); });
    }
    if (void* to = task.job->dbias) {
      add_blocks(sums.dbias_high, sums.dbias_low);
      write(sums.dbias_high, to, 0, false, [&](int64_t, C sum) { return exponent_of_dbias(sum); });
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
