// Backward over contiguous rows, a few at a time: one pass over the columns computes the two sums
// of each row and adds to the parameters' gradients; a second pass, from the cache, writes dx. Rows
// whose dx may be small by cancellation are summed once more in between.
#pragma once

enum class Wanted { nothing, dweight, both };  // gradients of the parameters

// The rows of a group share what is loaded for a column. Groups of two leave room in the
// first-level cache for dx; longer rows would not fit anyway and go in fours.
constexpr int64_t kMostGroupRows = 4;
constexpr int64_t kRowBytesForFours = 8 * 1024;

template <class Stored>
inline int64_t rows_per_group(int64_t cols) {
  const int64_t row_bytes = cols * static_cast<int64_t>(sizeof(Stored));
  return sizeof(Stored) >= 4 && row_bytes < kRowBytesForFours ? 2 : kMostGroupRows;
}

constexpr int64_t kFoldRows = 16;  // the most rows added to low between two folds

// A block's partial sums of the parameters' gradients, unevaluated as high + low, in pack order.
// Rows are added to low; every few groups, fold() moves the sum to high and leaves the rounding
// error in low, as Kahan summation does. After a fold, low is 0 where high is infinite or NaN.
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
inline void fold(C* high, C* low, int64_t cols) {
  int64_t col = 0;
  for (; col + lanes<C> <= cols; col += lanes<C>) {
    const Vector<C> a = load(high + col), b = load(low + col), sum = a + b;
    store(high + col, sum);
    store(low + col, zero_unless_finite(two_sum_error(a, b, sum), sum));
  }
  for (; col < cols; ++col) {
    const C rest = low[col];
    low[col] = 0;
    add_compensated(high[col], low[col], rest);
  }
}

// Adds a scalar row to the parameters' gradients.
template <class Stored>
void accumulate_scalar_row(const ScalarStatistics& row, RowOf<const Stored> x,
                           RowOf<const Stored> dy, const PartialSums<Compute<Stored>>& sums,
                           int64_t cols, Wanted wanted) {
  using C = Compute<Stored>;
  for (int64_t col = 0; col < cols; ++col) {
    const double xhat = row.normalized(static_cast<double>(to_compute(x[col])));
    const double term = static_cast<double>(to_compute(dy[col]));
    const int64_t at = x.stride == 1 ? position_in_row<Stored>(col, cols) : col;
    add_compensated(sums.dweight_high[at], sums.dweight_low[at], static_cast<C>(term * xhat));
    if (wanted == Wanted::both)
      add_compensated(sums.dbias_high[at], sums.dbias_low[at], static_cast<C>(term));
  }
}

// Numbers below this may have lost bits to underflow.
template <class C>
constexpr double kTiny = sizeof(C) == sizeof(float) ? 0x1p-90 : 0x1p-900;

// False where dx needs a scalar row: huge sums, or their products with rstd, may overflow; tiny
// ones may have lost bits to underflow, unless they are small by cancellation (dy is not tiny) or
// dy is zero.
template <class Stored>
inline bool are_ordinary_sums(double sum_g, double sum_g_xhat, double rstd, RowOf<const Stored> dy,
                              int64_t cols) {
  const double sum = std::fabs(sum_g) + std::fabs(sum_g_xhat);
  const double least = std::min(1.0, rstd), most = std::max(1.0, rstd);
  constexpr double tiny = kTiny<Compute<Stored>>;
  if (sum * least >= tiny && sum * most <= 1 / tiny) return true;
  if (!(sum * least < tiny)) return false;
  const double largest = largest_magnitude(dy, cols);
  return largest == 0 || largest * least >= tiny;
}

// The sums along R rows (for dx) and across them (for dweight and dbias).
template <class Stored, bool centered, bool has_weight, Wanted wanted, int64_t R>
struct GroupSums {
  using C = Compute<Stored>;
  static constexpr int64_t W = lanes<C>;

  Normalizer<C> normalizer[R];
  const Stored *x[R], *dy[R];
  LaneTotal<C> total_g[R], total_g_xhat[R];

  void term(int64_t r, Vector<C> x_here, Vector<C> dy_here, Vector<C> w, int64_t count,
            Vector<C>& sum_g, Vector<C>& sum_g_xhat, Vector<C>& dweight, Vector<C>& dbias) const {
    Vector<C> xhat = normalizer[r].template normalized<centered>(x_here);
    // The padding's xhat, -mean * rstd, may be infinite where a large row is constant.
    if (count < W) xhat = keep_first(xhat, count);
    const Vector<C> g = has_weight ? dy_here * w : dy_here;
    if constexpr (centered) sum_g += g;
    sum_g_xhat = fma(g, xhat, sum_g_xhat);
    if constexpr (wanted != Wanted::nothing) dweight = fma(dy_here, xhat, dweight);
    if constexpr (wanted == Wanted::both) dbias += dy_here;
  }

  LAYERNORM_INLINE void pack(int64_t col, const C* weight, Vector<C>* sum_g, Vector<C>* sum_g_xhat,
                             C* dweight_low, C* dbias_low) const {
    Pack<Stored> w = {}, dweight = {}, dbias = {};
    if constexpr (has_weight) w = load_ordered<Stored>(weight + col);
    LAYERNORM_UNROLL
    for (int64_t r = 0; r < R; ++r) {
      const Pack<Stored> x_here = load_pack(x[r] + col), dy_here = load_pack(dy[r] + col);
      LAYERNORM_UNROLL
      for (int64_t part = 0; part < vectors_in_pack<Stored>; ++part)
        term(r, x_here.part[part], dy_here.part[part], w.part[part], W, sum_g[r], sum_g_xhat[r],
             dweight.part[part], dbias.part[part]);
    }
    LAYERNORM_UNROLL
    for (int64_t part = 0; part < vectors_in_pack<Stored>; ++part) {
      const int64_t at = col + part * W;
      if constexpr (wanted != Wanted::nothing)
        store(dweight_low + at, load(dweight_low + at) + dweight.part[part]);
      if constexpr (wanted == Wanted::both)
        store(dbias_low + at, load(dbias_low + at) + dbias.part[part]);
    }
  }

  void tail(int64_t col, int64_t count, const C* weight, Vector<C>* sum_g, Vector<C>* sum_g_xhat,
            C* dweight_low, C* dbias_low) const {
    const Vector<C> w = has_weight ? load_first(weight + col, count) : Vector<C>{};
    Vector<C> dweight = {}, dbias = {};
    LAYERNORM_UNROLL
    for (int64_t r = 0; r < R; ++r)
      term(r, load_first(x[r] + col, count), load_first(dy[r] + col, count), w, count, sum_g[r],
           sum_g_xhat[r], dweight, dbias);
    if constexpr (wanted != Wanted::nothing)
      store_first(dweight_low + col, load_first(dweight_low + col, count) + dweight, count);
    if constexpr (wanted == Wanted::both)
      store_first(dbias_low + col, load_first(dbias_low + col, count) + dbias, count);
  }

  void flush(const Vector<C>* sum_g, const Vector<C>* sum_g_xhat) {
    LAYERNORM_UNROLL
    for (int64_t r = 0; r < R; ++r) {
      if constexpr (centered) total_g[r].add(sum_g[r]);
      total_g_xhat[r].add(sum_g_xhat[r]);
    }
  }

  void sum(int64_t cols, const C* weight, C* dweight_low, C* dbias_low) {
    constexpr int64_t size = pack_size<Stored>;
    const int64_t whole = cols - cols % size;
    for (int64_t col = 0; col < whole;) {
      const int64_t block_end = std::min(whole, col + kFlush * W);
      // Local arrays, not members, so that the compiler keeps them in registers.
      Vector<C> sum_g[R] = {}, sum_g_xhat[R] = {};
      for (; col < block_end; col += size)
        pack(col, weight, sum_g, sum_g_xhat, dweight_low, dbias_low);
      flush(sum_g, sum_g_xhat);
    }
    if (whole == cols) return;
    Vector<C> sum_g[R] = {}, sum_g_xhat[R] = {};
    for (int64_t col = whole; col < cols; col += W)
      tail(col, std::min(W, cols - col), weight, sum_g, sum_g_xhat, dweight_low, dbias_low);
    flush(sum_g, sum_g_xhat);
  }
};

// dx of one row, once its two sums are known: rstd * (g - mean_g) - xhat * slope, where the slope
// is rstd * mean(g * xhat). Of the products the one never larger than dx's scale is rounded.
template <class Stored, bool centered, bool has_weight>
struct RowGradient {
  using C = Compute<Stored>;
  static constexpr int64_t W = lanes<C>;

  Normalizer<C> normalizer;
  Vector<C> mean_g, minus_slope;
  const Stored *x, *dy;
  const C* weight;
  Stored* dx;
  // Distance in elements to the next group's row, to prefetch it; 0: do not.
  int64_t x_ahead, dy_ahead;

  Vector<C> value(Vector<C> x_here, Vector<C> dy_here, Vector<C> w) const {
    const Vector<C> xhat = normalizer.template normalized<centered>(x_here);
    Vector<C> g = has_weight ? dy_here * w : dy_here;
    if constexpr (centered) g -= mean_g;
    return fma(g, normalizer.rstd, xhat * minus_slope);
  }
  template <bool streamed>
  LAYERNORM_INLINE void pack(int64_t col) const {
    if (x_ahead != 0) {
      prefetch_pack(x + x_ahead + col);
      prefetch_pack(dy + dy_ahead + col);
    }
    Pack<Stored> w = {}, values = load_pack(x + col);
    const Pack<Stored> dy_here = load_pack(dy + col);
    if constexpr (has_weight) w = load_ordered<Stored>(weight + col);
    for (int64_t part = 0; part < vectors_in_pack<Stored>; ++part)
      values.part[part] = value(values.part[part], dy_here.part[part], w.part[part]);
    store_pack<streamed>(dx + col, values);
  }
  void tail(int64_t col, int64_t count) const {
    store_first(dx + col,
                value(load_first(x + col, count), load_first(dy + col, count),
                      has_weight ? load_first(weight + col, count) : Vector<C>{}),
                count);
  }
  RowGradient& to(Stored* row) {
    dx = row;
    return *this;
  }
};

template <class Stored, bool centered, bool has_weight, Wanted wanted>
struct RowsBackward {
  using C = Compute<Stored>;

  const BackwardTask& task;
  const Backward& job = *task.job;
  const Problem& problem = job.problem;
  const int64_t cols = problem.shape.cols;
  const C* const weight = static_cast<const C*>(task.weight);
  const int64_t group_rows = rows_per_group<Stored>(cols);
  int64_t last_row = 0;  // one past the last of the block
  LineWriter<Stored> lines = {};

  const Stored* x(int64_t row) const {
    return static_cast<const Stored*>(problem.x.data) + row * problem.x.outer_stride;
  }
  const Stored* dy(int64_t row) const {
    return static_cast<const Stored*>(job.dy.data) + row * job.dy.outer_stride;
  }
  Stored* dx(int64_t row) const {
    return static_cast<Stored*>(job.dx.data) + row * job.dx.outer_stride;
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

  void write_scalar_dx(const ScalarStatistics& scalar, int64_t row) const {
    backward_scalar_row<Stored, centered>(scalar, {x(row), 1}, {dy(row), 1},
                                          static_cast<const C*>(task.scalar_weight), {dx(row), 1},
                                          cols, problem.eps);
  }

  void scalar_row(const RowStatistics<C>& row_statistics, int64_t row,
                  const PartialSums<C>& sums) const {
    const ScalarStatistics scalar =
        scalar_statistics_from<Stored, centered>(row_statistics, {x(row), 1}, cols, problem.eps);
    if constexpr (wanted != Wanted::nothing)
      accumulate_scalar_row<Stored>(scalar, {x(row), 1}, {dy(row), 1}, sums, cols, wanted);
    if (job.dx.data) write_scalar_dx(scalar, row);
  }

  // Not inlined, so that the usual rows keep their registers.
  __attribute__((noinline)) double accurate_slope(double rstd, const Normalizer<C>& normalizer,
                                                  int64_t row) const {
    SumsAlongXhat<Stored, centered, has_weight> sums = {normalizer, x(row), dy(row), weight};
    walk_columns<false, Stored>(sums, 0, cols);
    const double n = static_cast<double>(cols);
    return slope_along_xhat<C>(sums.g_xhat.sum(), sums.squares.sum(n), rstd, problem.eps, n);
  }

  void write_dx(const RowStatistics<C>& row_statistics, const Normalizer<C>& normalizer,
                double sum_g, double sum_g_xhat, int64_t row) {
    const double n = static_cast<double>(cols), rstd = static_cast<double>(row_statistics.rstd);
    if (!are_ordinary_sums<Stored>(sum_g, sum_g_xhat, rstd, {dy(row), 1}, cols))
      return write_scalar_dx(
          scalar_statistics_from<Stored, centered>(row_statistics, {x(row), 1}, cols, problem.eps),
          row);
    const double mean_g_xhat = sum_g_xhat / n;
    double slope = rstd * mean_g_xhat;
    if (may_cancel<Stored, has_weight>(broadcast(static_cast<C>(mean_g_xhat)), dy(row), weight,
                                       cols))
      slope = accurate_slope(rstd, normalizer, row);
    const bool prefetch = task.prefetch && row + 2 * group_rows <= last_row;
    const RowGradient<Stored, centered, has_weight> gradient = {
        normalizer,
        broadcast(static_cast<C>(sum_g / n)),
        broadcast(static_cast<C>(-slope)),
        x(row),
        dy(row),
        weight,
        dx(row),
        prefetch ? group_rows * problem.x.outer_stride : 0,
        prefetch ? group_rows * job.dy.outer_stride : 0};
    if (task.stream)
      stream_row(gradient, dx(row), cols, lines);
    else
      walk_columns<false, Stored>(gradient, 0, cols);
  }

  template <int64_t R>
  void group(const RowStatistics<C>* rows, int64_t row, const PartialSums<C>& sums) {
    GroupSums<Stored, centered, has_weight, wanted, R> group;
    for (int64_t r = 0; r < R; ++r) {
      group.normalizer[r] = Normalizer<C>(rows[r]);
      group.x[r] = x(row + r);
      group.dy[r] = dy(row + r);
    }
    if (task.prefetch && !task.stream && job.dx.data)
      for (int64_t r = 0; r < R; ++r) prefetch_for_writing(dx(row + r), cols);
    group.sum(cols, weight, sums.dweight_low, sums.dbias_low);
    if (!job.dx.data) return;
    for (int64_t r = 0; r < R; ++r)
      write_dx(rows[r], group.normalizer[r], group.total_g[r].sum(), group.total_g_xhat[r].sum(),
               row + r);
  }

  void rows(int64_t row, int64_t count, const PartialSums<C>& sums) {
    RowStatistics<C> rows[kMostGroupRows];
    bool ordinary = count == group_rows;
    for (int64_t r = 0; r < count; ++r) {
      rows[r] = saved(row + r);
      ordinary = ordinary && rows[r].ordinary;
    }
    if (ordinary && count == 4) return group<4>(rows, row, sums);
    if (ordinary && count == 2) return group<2>(rows, row, sums);
    for (int64_t r = 0; r < count; ++r) {
      if (rows[r].ordinary)
        group<1>(rows + r, row + r, sums);
      else
        scalar_row(rows[r], row + r, sums);
    }
  }

  void block(int64_t index) {
    const PartialSums<C> sums(task, index);
    if constexpr (wanted != Wanted::nothing)
      std::fill(sums.dweight_high, sums.dweight_high + 4 * cols, C{});
    const int64_t begin = index * task.units_per_block;
    const int64_t end = std::min(task.units, begin + task.units_per_block);
    last_row = end;
    for (int64_t row = begin; row < end; row += group_rows) {
      rows(row, std::min(group_rows, end - row), sums);
      const bool full = (row - begin) % kFoldRows == kFoldRows - group_rows;
      if (!full && row + group_rows < end) continue;
      if constexpr (wanted != Wanted::nothing) fold(sums.dweight_high, sums.dweight_low, cols);
      if constexpr (wanted == Wanted::both) fold(sums.dbias_high, sums.dbias_low, cols);
    }
  }
};

template <class Stored, bool centered, bool has_weight, Wanted wanted>
void backward_rows(const BackwardTask& task, int64_t begin, int64_t end) {
  RowsBackward<Stored, centered, has_weight, wanted> rows{task};
  for (int64_t block = begin; block < end; ++block) rows.block(block);
  if (task.stream) finish_streaming();
}
