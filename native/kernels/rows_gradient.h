// dx of contiguous rows, once the sums along them are known. Rows whose dx may be small by
// cancellation are summed once more.
#pragma once

// The rows of a group share what is loaded for a column.
constexpr int64_t kGroupRows = 2;

// The rows whose sums are finished before their dx is written: one group, or several if they stay in
// the first-level cache, or of wide rows a batch that stays in the second-level cache.
constexpr int64_t kMostBatchRows = std::max(kWideBatchRows, lanes<double>);
constexpr int64_t kBackwardBatchBytes = 8 * 1024;

// How far ahead rows are prefetched. Half of it, x, is done while the sums are taken, and half, dy,
// while dx is written, so that neither pass waits for memory alone.
constexpr int64_t kAheadBytes = 8 * 1024;

template <class Stored>
inline int64_t whole_batches_ahead(int64_t cols, int64_t batch_rows) {
  const int64_t bytes = batch_rows * cols * static_cast<int64_t>(sizeof(Stored));
  return std::max(int64_t{1}, kAheadBytes / bytes) * batch_rows;
}

template <class Stored>
inline int64_t rows_per_backward_batch(int64_t cols) {
  const int64_t row_bytes = cols * static_cast<int64_t>(sizeof(Stored));
  if (row_bytes > kWideBytes) return std::max(kGroupRows, rows_per_wide_batch(row_bytes));
  int64_t rows = kMostBatchRows;
  while (rows > kGroupRows && rows * row_bytes > kBackwardBatchBytes) rows /= 2;
  return rows;
}

// Numbers below this may have lost bits to underflow.
template <class C>
constexpr double kTiny = sizeof(C) == sizeof(float) ? 0x1p-90 : 0x1p-900;

// False where dx needs a scaled row: huge sums, or their products with rstd, may overflow; tiny
// ones may have lost bits to underflow, unless they are small by cancellation (g is not tiny) or
// dy is zero. largest_g() is the largest |g| of the row.
template <class C, class F>
inline bool are_ordinary_sums(double sum_g, double sum_g_xhat, double rstd, F largest_g) {
  const double sum = std::fabs(sum_g) + std::fabs(sum_g_xhat);
  const double least = std::min(1.0, rstd), most = std::max(1.0, rstd);
  constexpr double tiny = kTiny<C>;
  if (sum * least >= tiny && sum * most <= 1 / tiny) return true;
  if (!(sum * least < tiny)) return false;
  const double largest = largest_g();
  return largest == 0 || largest * least >= tiny;
}

// The sums of a batch of rows, a total for each lane.
template <class C>
struct BatchTotals {
  LaneTotal<C> g[kMostBatchRows], g_xhat[kMostBatchRows];
};

// What dx needs of the sums of a batch of rows. Entries past the rows in use repeat the last row.
template <class C>
struct RowMeans {
  static constexpr int64_t W = lanes<double>;

  TotalsOfRows<C> total_g[kMostBatchRows / W], total_g_xhat[kMostBatchRows / W];
  alignas(64) double sum_g[kMostBatchRows], sum_g_xhat[kMostBatchRows];
  alignas(64) C g[kMostBatchRows], g_xhat[kMostBatchRows], slope[kMostBatchRows];
  bool ordinary = true;  // false: some sums may be huge or tiny; see are_ordinary_sums()

  void put(int64_t row, const LaneTotal<C>& g, const LaneTotal<C>& g_xhat) {
    total_g[row / W].put(row % W, g);
    total_g_xhat[row / W].put(row % W, g_xhat);
  }
  __attribute__((noinline)) void put_sums(BatchTotals<C>* parts, int64_t count, int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t part = 1; part < count; ++part) {
        parts[0].g[row].add(parts[part].g[row]);
        parts[0].g_xhat[row].add(parts[part].g_xhat[row]);
      }
      put(row, parts[0].g[row], parts[0].g_xhat[row]);
    }
  }

  void finish(const C* rstd, int64_t rows, double n) {
    const DoubleVector least = broadcast(kTiny<C>), most = broadcast(1 / kTiny<C>);
    for (int64_t first = 0; first < rows; first += W) {
      const int64_t block = first / W;
      DoubleVector rstds;
      if (first + W <= rows) {
        rstds = load_doubles(rstd + first);
      } else {
        C padded[W];
        for (int64_t k = 0; k < W; ++k) padded[k] = rstd[std::min(first + k, rows - 1)];
        rstds = load_doubles(padded);
        for (int64_t past = rows; past < first + W; ++past) {
          total_g[block].repeat(past - first - 1);
          total_g_xhat[block].repeat(past - first - 1);
        }
      }
      const DoubleVector of_g = total_g[block].sums(), of_g_xhat = total_g_xhat[block].sums();
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
  const Stored* dtotal;  // or null
  Stored* dx;
  // Distances in elements to the rows of dy and dtotal to prefetch; 0: do not.
  int64_t dy_ahead, dtotal_ahead;

  Vector<C> value(Vector<C> x_here, Vector<C> dy_here, Vector<C> w) const {
    const Vector<C> xhat = normalizer.template normalized<centered>(x_here);
    Vector<C> g = has_weight ? dy_here * w : dy_here;
    if constexpr (centered) g -= mean_g;
    return fma(g, normalizer.rstd, xhat * minus_slope);
  }
  template <bool streamed>
  LAYERNORM_INLINE void pack(int64_t col) const {
    if (dy_ahead != 0) prefetch_pack(dy + dy_ahead + col);
    Pack<Stored> w = {}, values = load_pack(x + col);
    const Pack<Stored> dy_here = load_pack(dy + col);
    if constexpr (has_weight) w = load_ordered<Stored>(weight + col);
    for (int64_t part = 0; part < vectors_in_pack<Stored>; ++part)
      values.part[part] = value(values.part[part], dy_here.part[part], w.part[part]);
    if (dtotal) return add_and_store<streamed>(col, values);
    store_pack<streamed>(dx + col, values);
  }
  // A NaN of a 16-bit dtotal has no digits that rounding, done as a number's, would carry.
  template <bool streamed>
  LAYERNORM_INLINE void add_and_store(int64_t col, Pack<Stored> values) const {
    if (dtotal_ahead != 0) prefetch_pack(dtotal + dtotal_ahead + col);
    const Pack<Stored> addend = load_pack(dtotal + col);
    for (int64_t part = 0; part < vectors_in_pack<Stored>; ++part)
      values.part[part] += addend.part[part];
    store_pack<streamed>(dx + col, values);
  }
  void tail(int64_t col, int64_t count) const {
    Vector<C> result = value(load_first(x + col, count), load_first(dy + col, count),
                             has_weight ? load_first(weight + col, count) : Vector<C>{});
    if (dtotal) result += load_first(dtotal + col, count);
    store_first(dx + col, result, count);
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
  const Parts parts = {cols, task.threads};
  const int64_t batch_rows = rows_per_backward_batch<Stored>(cols);
  const int64_t most_ahead = whole_batches_ahead<Stored>(cols, batch_rows);
  LineWriter<Stored> lines = {};

  using Offsets = RowOffsets<kMostBatchRows>;
  Offsets x_offset = {problem.shape, problem.x.strides};
  Offsets dy_offset = {problem.shape, job.dy.strides};
  Offsets dx_offset = {problem.shape, job.dx.strides};
  Offsets dtotal_offset = {problem.shape, job.dtotal.strides};
  Offsets statistics_offset = {problem.shape, problem.statistics.strides};

  const Stored* x(int64_t row) const {
    return static_cast<const Stored*>(problem.x.data) + x_offset(row);
  }
  const Stored* dy(int64_t row) const {
    return static_cast<const Stored*>(job.dy.data) + dy_offset(row);
  }
  Stored* dx(int64_t row) const { return static_cast<Stored*>(job.dx.data) + dx_offset(row); }
  const Stored* dtotal(int64_t row) const {
    if (!job.dtotal.data) return nullptr;
    return static_cast<const Stored*>(job.dtotal.data) + dtotal_offset(row);
  }

  // To a batch of a block that ends before row `last`.
  void move_to(int64_t first, int64_t count, int64_t last) {
    const bool prefetch = task.prefetch && first + most_ahead + batch_rows <= last;
    const int64_t rows_ahead = prefetch ? most_ahead : 0;
    for (Offsets* each : {&x_offset, &dy_offset, &dx_offset, &statistics_offset})
      each->move(first, count, rows_ahead);
    if (job.dtotal.data) dtotal_offset.move(first, count, rows_ahead);
  }

  ScaledStatistics<Stored> scaled(const RowStatistics<C>& row_statistics, int64_t row) const {
    return scaled_statistics_from<Stored, centered>(&row_statistics, AlongRow<Stored>{cols},
                                                    RowOf<const Stored>{x(row), 1}, problem.eps);
  }
  void write_scaled(const ScaledStatistics<Stored>& statistics, int64_t row) const {
    backward_scaled_rows<Stored, centered>(
        AlongRow<Stored>{cols}, statistics, RowOf<const Stored>{x(row), 1},
        RowOf<const Stored>{dy(row), 1}, weight, RowOf<const Stored>{dtotal(row), 1},
        RowOf<Stored>{dx(row), 1}, problem.eps);
  }

  LAYERNORM_INLINE RowGradient<Stored, centered, has_weight> gradient(
      const RowStatistics<C>& row_statistics, C mean_g, C slope, int64_t row) const {
    return {Normalizer<C>(row_statistics),
            broadcast(mean_g),
            broadcast(-slope),
            x(row),
            dy(row),
            weight,
            dtotal(row),
            dx(row),
            dy_offset.ahead(),
            dtotal_offset.ahead()};
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

  void correct_slope(const RowStatistics<C>* rows, RowMeans<C>& means, int64_t first,
                     int64_t at) const {
    const Vector<C> mean_g_xhat = broadcast(means.g_xhat[at]);
    if (may_cancel<Stored, has_weight>(mean_g_xhat, dy(first + at), weight, cols))
      means.slope[at] = accurate_slope(rows[at], first + at);
  }

  // Columns [begin, end) of rows [at, last) of a batch.
  __attribute__((noinline)) void write_part(const RowStatistics<C>* rows, const RowMeans<C>& means,
                                            int64_t first, int64_t at, int64_t last, int64_t begin,
                                            int64_t end) {
    const auto of_row = [&](int64_t r) {
      return gradient(rows[r], means.g[r], means.slope[r], first + r);
    };
    if (task.stream) {
      LineWriter<Stored> of_part;
      LineWriter<Stored>& to = parts.count > 1 ? of_part : lines;
      for (; at < last; ++at) stream_row(of_row(at), dx(first + at), begin, end, to);
      return;
    }
    for (; begin < end; begin += kBlockCols) {
      for (int64_t r = at; r < last; ++r) {
        const auto row = of_row(r);
        walk_columns<false, Stored>(row, begin, std::min(end, begin + kBlockCols));
      }
    }
  }

  // A batch that may have a scaled row.
  __attribute__((noinline)) void write_one_by_one(const RowStatistics<C>* rows, RowMeans<C>& means,
                                                  int64_t first, int64_t count) {
    for (int64_t at = 0; at < count; ++at) {
      const int64_t row = first + at;
      const auto largest = [&] {
        C of_g[lanes<C>];
        largest_g(AlongRow<Stored>{cols}, RowOf<const Stored>{dy(row), 1}, weight, of_g);
        return static_cast<double>(of_g[0]);
      };
      if (are_ordinary_sums<C>(means.sum_g[at], means.sum_g_xhat[at],
                               static_cast<double>(rows[at].rstd), largest)) {
        correct_slope(rows, means, first, at);
        write_part(rows, means, first, at, at + 1, 0, cols);
      } else {
        write_scaled(scaled(rows[at], row), row);
      }
    }
  }

  __attribute__((noinline)) void write(const RowStatistics<C>* rows, RowMeans<C>& means,
                                       int64_t first, int64_t count) {
    C gathered[kMostBatchRows];
    const C* rstd = gathered;
    if (statistics_offset.are_neighbors()) {
      rstd = static_cast<const C*>(problem.statistics.rstd) + first;
    } else {
      for (int64_t at = 0; at < count; ++at) gathered[at] = rows[at].rstd;
    }
    means.finish(rstd, count, static_cast<double>(cols));
    if (!means.ordinary) return write_one_by_one(rows, means, first, count);
    for (int64_t at = 0; at < count; ++at) correct_slope(rows, means, first, at);
    parts.each([&](int64_t, int64_t begin, int64_t end) {
      write_part(rows, means, first, 0, count, begin, end);
    });
  }
};
