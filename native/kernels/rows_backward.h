// Backward over contiguous rows, a batch at a time: one pass over the columns computes the two sums
// of each row and adds to the parameters' gradients; a second pass, from the cache, writes dx. Rows
// whose dx may be small by cancellation are summed once more in between.
#pragma once

enum class Wanted { nothing, dweight, both };  // gradients of the parameters

// The rows of a group share what is loaded for a column.
constexpr int64_t kGroupRows = 2;

// The rows whose sums are finished before their dx is written: one group, or several if they stay in
// the first-level cache, or of wide rows a batch that stays in the second-level cache.
constexpr int64_t kMostBatchRows = std::max(kWideBatchRows, lanes<double>);
constexpr int64_t kBackwardBatchBytes = 8 * 1024;

template <class Stored>
inline int64_t rows_per_backward_batch(int64_t cols, Cache cache) {
  const int64_t row_bytes = cols * static_cast<int64_t>(sizeof(Stored));
  if (is_wide_row(row_bytes, cache)) return std::max(kGroupRows, rows_per_wide_batch(row_bytes));
  int64_t rows = kMostBatchRows;
  while (rows > kGroupRows && rows * row_bytes > kBackwardBatchBytes) rows /= 2;
  return rows;
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

// Adds to high + low, exactly but for the rounding of low. After an overflow, low stays finite.
template <class C>
inline void add_first(C* high, C* low, Vector<C> v, int64_t count) {
  const bool whole = count == lanes<C>;
  const Vector<C> before = whole ? load(high) : load_first(high, count), sum = before + v;
  const Vector<C> rest = (whole ? load(low) : load_first(low, count)) +
                         zero_unless_finite(two_sum_error(before, v, sum), sum);
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

// Numbers below this may have lost bits to underflow.
template <class C>
constexpr double kTiny = sizeof(C) == sizeof(float) ? 0x1p-90 : 0x1p-900;

// False where dx needs a scaled row: huge sums, or their products with rstd, may overflow; tiny
// ones may have lost bits to underflow, unless they are small by cancellation (dy is not tiny) or
// dy is zero. largest_dy() is the largest |dy| of the row.
template <class C, class F>
inline bool are_ordinary_sums(double sum_g, double sum_g_xhat, double rstd, F largest_dy) {
  const double sum = std::fabs(sum_g) + std::fabs(sum_g_xhat);
  const double least = std::min(1.0, rstd), most = std::max(1.0, rstd);
  constexpr double tiny = kTiny<C>;
  if (sum * least >= tiny && sum * most <= 1 / tiny) return true;
  if (!(sum * least < tiny)) return false;
  const double largest = largest_dy();
  return largest == 0 || largest * least >= tiny;
}

// The sums along R rows (for dx) and across them (for dweight and dbias).
template <class Stored, bool centered, bool has_weight, Wanted wanted, int64_t R>
struct GroupSums {
  using C = Compute<Stored>;
  static constexpr int64_t W = lanes<C>;

  Normalizer<C> normalizer[R];
  const Stored *x[R], *dy[R];
  Stored* dx[R];  // prefetched for writing; null: do not
  LaneTotal<C> total_g[R], total_g_xhat[R];

  LAYERNORM_INLINE void term(int64_t r, Vector<C> x_here, Vector<C> dy_here, Vector<C> w,
                             int64_t count, Vector<C>& sum_g, Vector<C>& sum_g_xhat,
                             Vector<C>& dweight, Vector<C>& dbias) const {
    Vector<C> xhat = normalizer[r].template normalized<centered>(x_here);
    // The padding's xhat, -mean * rstd, may be infinite where a large row is constant.
    if (count < W) xhat = keep_first(xhat, count);
    const Vector<C> g = has_weight ? dy_here * w : dy_here;
    if constexpr (centered) sum_g += g;
    sum_g_xhat = fma(g, xhat, sum_g_xhat);
    if constexpr (wanted != Wanted::nothing)
      dweight = r == 0 ? dy_here * xhat : fma(dy_here, xhat, dweight);
    if constexpr (wanted == Wanted::both) dbias = r == 0 ? dy_here : dbias + dy_here;
  }

  LAYERNORM_INLINE void pack(int64_t col, const C* weight, Vector<C>* sum_g, Vector<C>* sum_g_xhat,
                             C* dweight_low, C* dbias_low) const {
    Pack<Stored> w = {}, dweight = {}, dbias = {};
    if constexpr (has_weight) w = load_ordered<Stored>(weight + col);
    LAYERNORM_UNROLL
    for (int64_t r = 0; r < R; ++r) {
      if (dx[0]) prefetch_pack_for_writing(dx[r] + col);
      const Pack<Stored> x_here = load_pack(x[r] + col), dy_here = load_pack(dy[r] + col);
      LAYERNORM_UNROLL
      for (int64_t part = 0; part < vectors_in_pack<Stored>; ++part)
        term(r, x_here.part[part], dy_here.part[part], w.part[part], W, sum_g[r], sum_g_xhat[r],
             dweight.part[part], dbias.part[part]);
    }
    LAYERNORM_UNROLL
    for (int64_t part = 0; part < vectors_in_pack<Stored>; ++part) {
      // Both are loaded before either is stored: wide rows of bfloat16 take 4% less time so.
      const int64_t at = col + part * W;
      if constexpr (wanted != Wanted::nothing) dweight.part[part] += load(dweight_low + at);
      if constexpr (wanted == Wanted::both) dbias.part[part] += load(dbias_low + at);
      if constexpr (wanted != Wanted::nothing) store(dweight_low + at, dweight.part[part]);
      if constexpr (wanted == Wanted::both) store(dbias_low + at, dbias.part[part]);
    }
  }

  LAYERNORM_INLINE void tail(int64_t col, int64_t count, const C* weight, Vector<C>* sum_g,
                             Vector<C>* sum_g_xhat, C* dweight_low, C* dbias_low) const {
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

  // Adds columns [begin, end) to the totals; from column 0 on, the totals begin anew.
  LAYERNORM_INLINE void sum(int64_t begin, int64_t end, const C* weight, C* dweight_low,
                            C* dbias_low) {
    constexpr int64_t size = pack_size<Stored>;
    for (int64_t col = begin; col < end;) {
      const bool begins = col == 0;
      const int64_t block_end = std::min(end, col + kFlush * W);
      // Local arrays, not members, so that the compiler keeps them in registers.
      Vector<C> sum_g[R] = {}, sum_g_xhat[R] = {};
      for (; col + size <= block_end; col += size)
        pack(col, weight, sum_g, sum_g_xhat, dweight_low, dbias_low);
      for (; col < block_end; col += W)
        tail(col, std::min(W, block_end - col), weight, sum_g, sum_g_xhat, dweight_low, dbias_low);
      LAYERNORM_UNROLL
      for (int64_t r = 0; r < R; ++r) {
        if (begins) {
          total_g[r] = LaneTotal<C>(sum_g[r]);
          total_g_xhat[r] = LaneTotal<C>(sum_g_xhat[r]);
        } else {
          if constexpr (centered) total_g[r].add(sum_g[r]);
          total_g_xhat[r].add(sum_g_xhat[r]);
        }
      }
    }
  }
};

// What dx needs of the sums of a batch of rows. Entries past the rows in use repeat the last row.
template <class C>
struct RowMeans {
  static constexpr int64_t W = lanes<double>;

  TotalsOfRows<C> total_g[kMostBatchRows / W], total_g_xhat[kMostBatchRows / W];
  alignas(64) C rstd[kMostBatchRows];
  alignas(64) double sum_g[kMostBatchRows], sum_g_xhat[kMostBatchRows];
  alignas(64) C g[kMostBatchRows], g_xhat[kMostBatchRows], slope[kMostBatchRows];
  bool ordinary = true;  // false: some sums may be huge or tiny; see are_ordinary_sums()

  void put(int64_t row, C rstd_of_row, const LaneTotal<C>& g, const LaneTotal<C>& g_xhat) {
    rstd[row] = rstd_of_row;
    total_g[row / W].put(row % W, g);
    total_g_xhat[row / W].put(row % W, g_xhat);
  }

  void repeat(int64_t row) {
    rstd[row + 1] = rstd[row];
    total_g[(row + 1) / W].repeat(row % W);
    total_g_xhat[(row + 1) / W].repeat(row % W);
  }

  void finish(int64_t rows, double n) {
    const DoubleVector least = broadcast(kTiny<C>), most = broadcast(1 / kTiny<C>);
    for (int64_t first = 0; first < rows; first += W) {
      const DoubleVector of_g = total_g[first / W].sums();
      const DoubleVector of_g_xhat = total_g_xhat[first / W].sums();
      const DoubleVector rstds = load_doubles(rstd + first);
      const DoubleVector size = magnitude(of_g) + magnitude(of_g_xhat), scaled = size * rstds;
      ordinary = ordinary && all_at_most(least, size) && all_at_most(least, scaled) &&
                 all_at_most(size, most) && all_at_most(scaled, most);
      const DoubleVector mean_g_xhat = over<C>(of_g_xhat, n);
      store_doubles(sum_g + first, of_g);
      store_doubles(sum_g_xhat + first, of_g_xhat);
      store_doubles(g + first, over<C>(of_g, n));
      store_doubles(g_xhat + first, mean_g_xhat);
      store_doubles(slope + first, rstds * mean_g_xhat);
    }
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

// Writes dx of a batch of rows, once their sums are known.
template <class Stored, bool centered, bool has_weight>
struct RowGradients {
  using C = Compute<Stored>;

  const BackwardTask& task;
  const Backward& job = *task.job;
  const Problem& problem = job.problem;
  const int64_t cols = problem.shape.cols;
  const C* const weight = static_cast<const C*>(task.weight);
  const int64_t batch_rows = rows_per_backward_batch<Stored>(cols, task.cache);
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

  ScaledStatistics<Stored> scaled(const RowStatistics<C>& row_statistics, int64_t row) const {
    return scaled_statistics_from<Stored, centered>(&row_statistics, 1, AlongRow{cols},
                                                    RowOf<const Stored>{x(row), 1}, problem.eps);
  }
  void write_scaled(const ScaledStatistics<Stored>& statistics, int64_t row) const {
    backward_scaled_rows<Stored, centered>(
        AlongRow{cols}, statistics, RowOf<const Stored>{x(row), 1}, RowOf<const Stored>{dy(row), 1},
        static_cast<const C*>(task.weight_by_column), RowOf<Stored>{dx(row), 1}, problem.eps);
  }

  LAYERNORM_INLINE RowGradient<Stored, centered, has_weight> gradient(
      const RowStatistics<C>& row_statistics, C mean_g, C slope, int64_t row) const {
    const bool prefetch = task.prefetch && row + 2 * batch_rows <= last_row;
    return {Normalizer<C>(row_statistics),
            broadcast(mean_g),
            broadcast(-slope),
            x(row),
            dy(row),
            weight,
            dx(row),
            prefetch ? batch_rows * problem.x.outer_stride : 0,
            prefetch ? batch_rows * job.dy.outer_stride : 0};
  }

  // The functions for rare rows are not inlined, so that the usual ones keep their registers.
  __attribute__((noinline)) C accurate_slope(const RowStatistics<C>& row_statistics,
                                             int64_t row) const {
    SumsAlongXhat<Stored, centered, has_weight> sums = {Normalizer<C>(row_statistics), x(row),
                                                        dy(row), weight};
    walk_columns<false, Stored>(sums, 0, cols);
    const double n = static_cast<double>(cols), rstd = static_cast<double>(row_statistics.rstd);
    return static_cast<C>(
        slope_along_xhat<C>(sums.g_xhat.sum(), sums.squares.sum(n), rstd, problem.eps, n));
  }

  // Past the cache, or a batch with a scaled row.
  __attribute__((noinline)) void write_row_by_row(const RowStatistics<C>* rows,
                                                  const RowMeans<C>& means, int64_t first,
                                                  int64_t count) {
    for (int64_t at = 0; at < count; ++at) {
      const int64_t row = first + at;
      const auto largest_dy = [&] {
        return largest_magnitude(AlongRow{cols}, RowOf<const Stored>{dy(row), 1})[0];
      };
      if (!means.ordinary &&
          !are_ordinary_sums<C>(means.sum_g[at], means.sum_g_xhat[at],
                                static_cast<double>(rows[at].rstd), largest_dy)) {
        write_scaled(scaled(rows[at], row), row);
        continue;
      }
      auto of_row = gradient(rows[at], means.g[at], means.slope[at], row);
      if (task.stream)
        stream_row(of_row, dx(row), cols, lines);
      else
        walk_columns<false, Stored>(of_row, 0, cols);
    }
  }

  __attribute__((noinline)) void write(const RowStatistics<C>* rows, RowMeans<C>& means,
                                       int64_t first, int64_t count) {
    means.finish(count, static_cast<double>(cols));
    for (int64_t at = 0; at < count; ++at)
      if (may_cancel<Stored, has_weight>(broadcast(means.g_xhat[at]), dy(first + at), weight, cols))
        means.slope[at] = accurate_slope(rows[at], first + at);
    if (!means.ordinary || task.stream) return write_row_by_row(rows, means, first, count);
    for (int64_t begin = 0; begin < cols; begin += kBlockCols) {
      for (int64_t at = 0; at < count; ++at) {
        const auto of_row = gradient(rows[at], means.g[at], means.slope[at], first + at);
        walk_columns<false, Stored>(of_row, begin, std::min(cols, begin + kBlockCols));
      }
    }
  }
};

template <class Stored, bool centered, bool has_weight, Wanted wanted>
struct RowsBackward {
  using C = Compute<Stored>;

  const BackwardTask& task;
  const Problem& problem = task.job->problem;
  const int64_t cols = problem.shape.cols;
  const bool wants_dx = task.job->dx.data != nullptr;
  RowGradients<Stored, centered, has_weight> gradients = {task};
  // Of wide rows, between two blocks of columns.
  LaneTotal<C> total_g[kMostBatchRows] = {}, total_g_xhat[kMostBatchRows] = {};

  RowStatistics<C> saved(int64_t row) const {
    const Statistics& from = problem.statistics;
    RowStatistics<C> result = {0, 0, static_cast<const C*>(from.rstd)[row], true};
    if constexpr (centered) {
      result.mean = static_cast<const C*>(from.mean)[row];
      result.residual = from.residual ? static_cast<const C*>(from.residual)[row]
                                      : residual_of(result.mean, gradients.x(row), cols);
    }
    result.ordinary = is_ordinary_rstd(result.rstd);
    return result;
  }

  __attribute__((noinline)) void scaled_row(const RowStatistics<C>& row_statistics, int64_t row,
                                            const PartialSums<C>& sums) const {
    const ScaledStatistics<Stored> statistics = gradients.scaled(row_statistics, row);
    if constexpr (wanted != Wanted::nothing)
      accumulate_scaled_row<Stored>(statistics, {gradients.x(row), 1}, {gradients.dy(row), 1}, sums,
                                    cols, wanted);
    if (wants_dx) gradients.write_scaled(statistics, row);
  }

  template <int64_t R>
  void batch(const RowStatistics<C>* rows, int64_t row, int64_t count, const PartialSums<C>& sums) {
    const bool prefetch_dx = task.prefetch && !task.stream && wants_dx;
    RowMeans<C> means;
    for (int64_t begin = 0; begin < cols; begin += kBlockCols) {
      const int64_t end = std::min(cols, begin + kBlockCols);
      for (int64_t at = 0; at < count; at += R) {
        GroupSums<Stored, centered, has_weight, wanted, R> group;
        for (int64_t r = 0; r < R; ++r) {
          group.normalizer[r] = Normalizer<C>(rows[at + r]);
          group.x[r] = gradients.x(row + at + r);
          group.dy[r] = gradients.dy(row + at + r);
          group.dx[r] = prefetch_dx ? gradients.dx(row + at + r) : nullptr;
          if (begin == 0) continue;
          group.total_g[r] = total_g[at + r];
          group.total_g_xhat[r] = total_g_xhat[at + r];
        }
        group.sum(begin, end, gradients.weight, sums.dweight_low, sums.dbias_low);
        for (int64_t r = 0; r < R; ++r) {
          if (end == cols) {
            means.put(at + r, rows[at + r].rstd, group.total_g[r], group.total_g_xhat[r]);
          } else {
            total_g[at + r] = group.total_g[r];
            total_g_xhat[at + r] = group.total_g_xhat[r];
          }
        }
      }
    }
    for (int64_t past = count; past % lanes<double> != 0; ++past) means.repeat(past - 1);
    if (wants_dx) gradients.write(rows, means, row, count);
  }

  void rows(int64_t row, int64_t count, const PartialSums<C>& sums) {
    RowStatistics<C> rows[kMostBatchRows];
    bool ordinary = count % kGroupRows == 0;
    for (int64_t r = 0; r < count; ++r) {
      rows[r] = saved(row + r);
      ordinary = ordinary && rows[r].ordinary;
    }
    if (ordinary) return batch<kGroupRows>(rows, row, count, sums);
    for (int64_t r = 0; r < count; ++r) {
      if (rows[r].ordinary)
        batch<1>(rows + r, row + r, 1, sums);
      else
        scaled_row(rows[r], row + r, sums);
    }
  }

  void block(int64_t index) {
    const PartialSums<C> sums(task, index);
    if constexpr (wanted != Wanted::nothing)
      std::fill(sums.dweight_high, sums.dweight_high + 4 * cols, C{});
    const int64_t begin = index * task.units_per_block, batch_rows = gradients.batch_rows;
    const int64_t end = std::min(task.units, begin + task.units_per_block);
    gradients.last_row = end;
    for (int64_t row = begin; row < end; row += batch_rows) {
      rows(row, std::min(batch_rows, end - row), sums);
      const bool full = (row - begin) % kFoldRows == kFoldRows - batch_rows;
      if (!full && row + batch_rows < end) continue;
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
