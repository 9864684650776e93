// Backward, the normalized axis contiguous. A few rows at a time: a walk over the columns takes the
// two sums of each row and the parameters' gradients; a second one, over lines still in the cache,
// writes dx.
#pragma once

enum class Wanted { nothing, dweight, both };  // gradients of the parameters

constexpr int64_t kGroupRows = 4;

// A block's partial sums of the parameters' gradients, each unevaluated as high + low.
template <class C>
struct PartialSums {
  C *dweight_high, *dweight_low, *dbias_high, *dbias_low;

  PartialSums(const BackwardTask& task, int64_t block) {
    const int64_t cols = task.job->problem.shape.cols;
    dweight_high = static_cast<C*>(task.partials) + 4 * cols * block;
    dweight_low = dweight_high + cols;
    dbias_high = dweight_low + cols;
    dbias_low = dbias_high + cols;
  }
};

template <class C>
inline void accumulate(C* high, C* low, Vector<C> term) {
  Compensated<C> sum = {load(high), load(low)};
  sum.add(term);
  store(high, sum.high);
  store(low, sum.low);
}
template <class C>
inline void accumulate_first(C* high, C* low, Vector<C> term, int64_t count) {
  Compensated<C> sum = {load_first(high, count), load_first(low, count)};
  sum.add(term);
  store_first(high, sum.high, count);
  store_first(low, sum.low, count);
}

// The parameters' gradients from one row that took the wide path.
template <class Stored>
void accumulate_wide_row(const WideStatistics& row, RowOf<const Stored> x, RowOf<const Stored> dy,
                         const PartialSums<Compute<Stored>>& sums, int64_t cols, Wanted wanted) {
  using C = Compute<Stored>;
  for (int64_t col = 0; col < cols; ++col) {
    const double xhat = row.normalized(static_cast<double>(scalar_from(x[col])));
    const double term = static_cast<double>(scalar_from(dy[col]));
    add_compensated(sums.dweight_high[col], sums.dweight_low[col], static_cast<C>(term * xhat));
    if (wanted == Wanted::both)
      add_compensated(sums.dbias_high[col], sums.dbias_low[col], static_cast<C>(term));
  }
}

// Sums that are not finite overflowed, unless an input was not; tiny ones may have lost bits to
// underflow where dy itself is tiny. Zeros are what they seem.
template <class Stored>
inline bool are_ordinary_sums(double sum_g, double sum_g_xhat, RowOf<const Stored> dy,
                              int64_t cols) {
  const double sum = std::fabs(sum_g) + std::fabs(sum_g_xhat);
  constexpr double tiny = sizeof(Compute<Stored>) == 4 ? 0x1p-90 : 0x1p-900;
  if (sum >= tiny && sum <= std::numeric_limits<double>::max()) return true;
  if (!(sum < tiny)) return false;
  const double largest = largest_magnitude(dy, cols);
  return largest == 0 || largest >= tiny;
}

template <class Stored, bool centered, bool has_weight, Wanted wanted>
struct RowsBackward {
  using C = Compute<Stored>;
  static constexpr int64_t W = lanes<C>;

  const BackwardTask& task;
  const Problem& problem = task.job->problem;
  const int64_t cols = problem.shape.cols;
  const C* const weight = static_cast<const C*>(task.weight);

  const Stored* x(int64_t row) const {
    return static_cast<const Stored*>(problem.x.data) + row * problem.x.outer_stride;
  }
  const Stored* dy(int64_t row) const {
    return static_cast<const Stored*>(task.job->dy.data) + row * task.job->dy.outer_stride;
  }
  Stored* dx(int64_t row) const {
    return static_cast<Stored*>(task.job->dx.data) + row * task.job->dx.outer_stride;
  }

  RowStatistics<C> saved(int64_t row) const {
    const Statistics& from = problem.statistics;
    RowStatistics<C> result = {0, 0, static_cast<const C*>(from.rstd)[row], true};
    if constexpr (centered) {
      result.mean = static_cast<const C*>(from.mean)[row];
      result.residual = from.residual ? static_cast<const C*>(from.residual)[row]
                                      : residual_of(result.mean, x(row), cols);
    }
    result.ordinary = is_ordinary_rstd(result.rstd);
    return result;
  }

  void wide_row(const WideStatistics& wide, int64_t row) const {
    if (task.job->dx.data)
      backward_wide_row<Stored, centered>(wide, {x(row), 1}, {dy(row), 1}, weight, {dx(row), 1},
                                          cols);
  }

  void extraordinary_row(const RowStatistics<C>& row_statistics, int64_t row,
                         const PartialSums<C>& sums) const {
    const WideStatistics wide =
        wide_from_saved<Stored, centered>(row_statistics, {x(row), 1}, cols, problem.eps);
    if constexpr (wanted != Wanted::nothing)
      accumulate_wide_row<Stored>(wide, {x(row), 1}, {dy(row), 1}, sums, cols, wanted);
    wide_row(wide, row);
  }

  // Adds one vector of columns of R rows to the sums.
  template <int64_t R, bool whole>
  void visit(int64_t row, int64_t col, int64_t count, const Normalizer<C>* normalizer,
             Vector<C>* sum_g, Vector<C>* sum_g_xhat, const PartialSums<C>& sums) const {
    Vector<C> dweight = {}, dbias = {}, w = {};
    if constexpr (has_weight) w = whole ? load(weight + col) : load_first(weight + col, count);
    for (int64_t r = 0; r < R; ++r) {
      const Stored* x_at = x(row + r) + col;
      const Stored* dy_at = dy(row + r) + col;
      const Vector<C> dy_here = whole ? load(dy_at) : load_first(dy_at, count);
      Vector<C> xhat = normalizer[r].template normalized<centered>(
          whole ? load(x_at) : load_first(x_at, count));
      if constexpr (!whole) xhat = keep_first(xhat, count);
      const Vector<C> g = has_weight ? dy_here * w : dy_here;
      if constexpr (centered) sum_g[r] += g;
      sum_g_xhat[r] = fma(g, xhat, sum_g_xhat[r]);
      if constexpr (wanted != Wanted::nothing) dweight = fma(dy_here, xhat, dweight);
      if constexpr (wanted == Wanted::both) dbias += dy_here;
    }
    const auto add = [&](C* high, C* low, Vector<C> term) {
      if constexpr (whole)
        accumulate(high + col, low + col, term);
      else
        accumulate_first(high + col, low + col, term, count);
    };
    if constexpr (wanted != Wanted::nothing) add(sums.dweight_high, sums.dweight_low, dweight);
    if constexpr (wanted == Wanted::both) add(sums.dbias_high, sums.dbias_low, dbias);
  }

  template <bool streamed>
  void write_dx(const Normalizer<C>& normalizer, C mean_g, C mean_g_xhat, int64_t row) const {
    const Stored* x_row = x(row);
    const Stored* dy_row = dy(row);
    Stored* dx_row = dx(row);
    const Vector<C> mean_g_all = broadcast(mean_g), mean_g_xhat_all = broadcast(-mean_g_xhat);
    const auto value = [&](Vector<C> x_here, Vector<C> dy_here, Vector<C> w) {
      const Vector<C> xhat = normalizer.template normalized<centered>(x_here);
      Vector<C> g = has_weight ? dy_here * w : dy_here;
      if constexpr (centered) g -= mean_g_all;
      return fma(xhat, mean_g_xhat_all, g) * normalizer.rstd;
    };
    const auto whole = [&](int64_t col) {
      return value(load(x_row + col), load(dy_row + col),
                   has_weight ? load(weight + col) : Vector<C>{});
    };
    const auto some = [&](int64_t col, int64_t count) {
      store_first(dx_row + col,
                  value(load_first(x_row + col, count), load_first(dy_row + col, count),
                        has_weight ? load_first(weight + col, count) : Vector<C>{}),
                  count);
    };
    int64_t col = 0;
    if constexpr (streamed) {
      constexpr auto alignment = sizeof(typename Packed<Stored>::type);
      const auto past = reinterpret_cast<uintptr_t>(dx_row) % alignment;
      if (past != 0) {
        col = std::min(static_cast<int64_t>((alignment - past) / sizeof(Stored)), cols);
        some(0, col);
      }
      for (; col + W <= cols; col += W) stream(dx_row + col, whole(col));
    } else {
      for (; col + W <= cols; col += W) store(dx_row + col, whole(col));
    }
    if (col < cols) some(col, cols - col);
  }

  template <int64_t R>
  void group(const RowStatistics<C>* rows, int64_t row, const PartialSums<C>& sums) const {
    Normalizer<C> normalizer[R];
    for (int64_t r = 0; r < R; ++r) normalizer[r] = Normalizer<C>(rows[r]);
    LaneTotal<C> total_g[R], total_g_xhat[R];
    const int64_t whole = cols - cols % W;
    for (int64_t col = 0; col < whole;) {
      const int64_t flush = std::min(whole, col + kFlush * W);
      Vector<C> sum_g[R] = {}, sum_g_xhat[R] = {};
      for (; col < flush; col += W)
        visit<R, true>(row, col, W, normalizer, sum_g, sum_g_xhat, sums);
      for (int64_t r = 0; r < R; ++r) {
        if constexpr (centered) total_g[r].add(sum_g[r]);
        total_g_xhat[r].add(sum_g_xhat[r]);
      }
    }
    if (whole < cols) {
      Vector<C> sum_g[R] = {}, sum_g_xhat[R] = {};
      visit<R, false>(row, whole, cols - whole, normalizer, sum_g, sum_g_xhat, sums);
      for (int64_t r = 0; r < R; ++r) {
        if constexpr (centered) total_g[r].add(sum_g[r]);
        total_g_xhat[r].add(sum_g_xhat[r]);
      }
    }
    if (!task.job->dx.data) return;
    const double n = static_cast<double>(cols);
    for (int64_t r = 0; r < R; ++r) {
      const double sum_g = total_g[r].sum(), sum_g_xhat = total_g_xhat[r].sum();
      if (!are_ordinary_sums<Stored>(sum_g, sum_g_xhat, {dy(row + r), 1}, cols)) {
        wide_row(wide_from_saved<Stored, centered>(rows[r], {x(row + r), 1}, cols, problem.eps),
                 row + r);
      } else if (task.stream) {
        write_dx<true>(normalizer[r], static_cast<C>(sum_g / n), static_cast<C>(sum_g_xhat / n),
                       row + r);
      } else {
        write_dx<false>(normalizer[r], static_cast<C>(sum_g / n), static_cast<C>(sum_g_xhat / n),
                        row + r);
      }
    }
  }

  void block(int64_t index) const {
    const PartialSums<C> sums(task, index);
    if constexpr (wanted != Wanted::nothing)
      std::fill(sums.dweight_high, sums.dweight_high + 4 * cols, C{});
    const int64_t end = std::min(task.units, (index + 1) * task.units_per_block);
    for (int64_t row = index * task.units_per_block; row < end;) {
      const int64_t count = std::min(kGroupRows, end - row);
      RowStatistics<C> rows[kGroupRows];
      bool ordinary = count == kGroupRows;
      for (int64_t r = 0; r < count; ++r) {
        rows[r] = saved(row + r);
        ordinary = ordinary && rows[r].ordinary;
      }
      if (ordinary) {
        group<kGroupRows>(rows, row, sums);
      } else {
        for (int64_t r = 0; r < count; ++r) {
          if (rows[r].ordinary)
            group<1>(rows + r, row + r, sums);
          else
            extraordinary_row(rows[r], row + r, sums);
        }
      }
      row += count;
    }
  }
};

template <class Stored, bool centered, bool has_weight, Wanted wanted>
void backward_rows(const BackwardTask& task, int64_t begin, int64_t end) {
  const RowsBackward<Stored, centered, has_weight, wanted> rows{task};
  for (int64_t block = begin; block < end; ++block) rows.block(block);
  if (task.stream) finish_streaming();
}

// The blocks' partial sums of columns [begin, end), one after the other, and the final rounding.
template <class C, class Parameter>
void reduce_partial_sums(const C* partials, int64_t blocks, int64_t cols, int64_t begin,
                         int64_t end, Parameter* gradient) {
  for (int64_t col = begin; col < end; ++col) {
    C high = 0, low = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      add_compensated(high, low, partials[4 * cols * block + col]);
      low += partials[4 * cols * block + cols + col];
    }
    // Where the sum overflowed, or met an infinity, low is NaN.
    gradient[col] = stored_from<Parameter>(std::isfinite(high) ? high + low : high);
  }
}
