// Forward over contiguous rows, one after another. A row that fits the cache is read from memory
// once.
#pragma once

// Which parameters the layer has. A template argument, so that an absent one costs nothing.
template <bool weight, bool bias>
struct Affine {
  static constexpr bool has_weight = weight;
  static constexpr bool has_bias = bias;
};

template <class A, class C>
inline Vector<C> scale_and_shift(Vector<C> xhat, Vector<C> weight, Vector<C> bias) {
  if constexpr (A::has_weight && A::has_bias) return fma(xhat, weight, bias);
  if constexpr (A::has_weight) return xhat * weight;
  if constexpr (A::has_bias) return xhat + bias;
  return xhat;
}

// Writes y of R neighboring rows, which share each load of weight and bias.
template <class Stored, bool centered, class A, int64_t R>
struct NormalizeRows {
  using C = Compute<Stored>;
  static constexpr int64_t W = lanes<C>;

  Normalizer<C> normalizer[R];
  const Stored* x[R];
  Stored* y[R];
  const C* weight;
  const C* bias;
  // Distance in elements to the next batch's row, to prefetch it; 0: do not.
  int64_t ahead;

  template <bool streamed>
  LAYERNORM_INLINE void pack(int64_t col) const {
    Pack<Stored> w = {}, b = {};
    if constexpr (A::has_weight) w = load_ordered<Stored>(weight + col);
    if constexpr (A::has_bias) b = load_ordered<Stored>(bias + col);
    for (int64_t r = 0; r < R; ++r) {
      if (ahead != 0) prefetch_pack(x[r] + ahead + col);
      Pack<Stored> values = load_pack(x[r] + col);
      for (int64_t part = 0; part < vectors_in_pack<Stored>; ++part)
        values.part[part] =
            scale_and_shift<A, C>(normalizer[r].template normalized<centered>(values.part[part]),
                                  w.part[part], b.part[part]);
      store_pack<streamed>(y[r] + col, values);
    }
  }
  void tail(int64_t col, int64_t count) const {
    const Vector<C> w = A::has_weight ? load_first(weight + col, count) : Vector<C>{};
    const Vector<C> b = A::has_bias ? load_first(bias + col, count) : Vector<C>{};
    for (int64_t r = 0; r < R; ++r)
      store_first(
          y[r] + col,
          scale_and_shift<A, C>(
              normalizer[r].template normalized<centered>(load_first(x[r] + col, count)), w, b),
          count);
  }
};

template <class C>
inline void save(const RowStatistics<C>& row, const Statistics& statistics, int64_t index) {
  if (statistics.mean) static_cast<C*>(statistics.mean)[index] = row.mean;
  if (statistics.rstd) static_cast<C*>(statistics.rstd)[index] = row.rstd;
  if (statistics.residual) static_cast<C*>(statistics.residual)[index] = row.residual;
}

// A batch of rows, whose statistics are computed together, fits the first-level cache. An x larger
// than the second-level cache takes smaller batches, so that reading x and writing y overlap;
// 16-bit types are bound by arithmetic and gain nothing from smaller batches.
constexpr int64_t kBatchRows = 32;
constexpr int64_t kBatchBytes = 16 * 1024;
constexpr int64_t kSmallBatchBytes = 8 * 1024;

template <class Stored>
inline int64_t rows_per_batch(int64_t cols, Cache cache) {
  const int64_t row_bytes = cols * static_cast<int64_t>(sizeof(Stored));
  // In a cache, sharing the parameters pays for narrower rows too.
  if (row_bytes > (cache == Cache::none ? kWideBytes : kWideBytes / 2))
    return rows_per_wide_batch(row_bytes);
  const int64_t bytes =
      cache != Cache::second_level && sizeof(Stored) >= 4 ? kSmallBatchBytes : kBatchBytes;
  return std::max(int64_t{1}, std::min(kBatchRows, bytes / row_bytes));
}

// Elements to add: to[k] = a[k] + b[k], rounded. `to` may be a or b itself.
template <class Stored>
struct Sum {
  const Stored *a, *b;
  Stored* to;
};

// Prefetches both, in turns: one after the other is 10% slower.
template <class Stored>
__attribute__((noinline)) void prefetch(const Stored* a, const Stored* b, int64_t begin,
                                        int64_t end) {
  constexpr int64_t step = kLine / static_cast<int64_t>(sizeof(Stored));
  for (int64_t at = begin; at < end; at += step) {
    __builtin_prefetch(a + at, 0, 2);
    __builtin_prefetch(b + at, 0, 2);
  }
}

template <class Stored>
__attribute__((noinline)) void add_elements(const Sum<Stored>& sum, int64_t begin, int64_t end) {
  constexpr int64_t W = lanes<Compute<Stored>>;
  int64_t at = begin;
  for (; at + 4 * W <= end; at += 4 * W) {
    Vector<Compute<Stored>> sums[4];
    for (int v = 0; v < 4; ++v) sums[v] = load(sum.a + at + v * W) + load(sum.b + at + v * W);
    for (int v = 0; v < 4; ++v) store(sum.to + at + v * W, sums[v]);
  }
  for (; at < end; at += W) {
    const int64_t rest = std::min(W, end - at);
    store_first(sum.to + at, load_first(sum.a + at, rest) + load_first(sum.b + at, rest), rest);
  }
}

template <class Stored, bool centered, class A>
struct RowsForward {
  using C = Compute<Stored>;

  const ForwardTask& task;
  const Forward& job = *task.job;
  const Problem& problem = job.problem;
  const int64_t cols = problem.shape.cols;
  const C* const weight = static_cast<const C*>(task.weight);
  const C* const bias = static_cast<const C*>(task.bias);
  const Parts parts = {cols, task.threads};

  using Offsets = RowOffsets<kBatchRows>;
  Offsets x_offset = {problem.shape, problem.x.strides};
  Offsets addend_offset[2] = {{problem.shape, job.addends[0].strides},
                              {problem.shape, job.addends[1].strides}};
  Offsets y_offset = {problem.shape, job.y.strides};
  Offsets statistics_offset = {problem.shape, problem.statistics.strides};

  // The rows of a batch.
  RowsOf<Stored> x() const { return x_offset.rows_of<Stored>(problem.x); }
  RowsOf<Stored> y() const { return y_offset.rows_of<Stored>(job.y); }

  // Of `most` rows from this one on: whole runs, or a part of one, so that all are as far from those
  // to prefetch.
  int64_t rows_together(int64_t first, int64_t most) const {
    const Shape& shape = problem.shape;
    if (shape.is_one_run()) return most;
    const int64_t run = shape.outer / shape.runs(), in_run = first % run;
    return in_run != 0 || run > most ? std::min(most, run - in_run) : most - most % run;
  }

  // To a batch; `rows_ahead`: from each row to that to prefetch.
  void move_to(int64_t first, int64_t count, int64_t rows_ahead) {
    x_offset.move(first, count, job.adds() ? 0 : rows_ahead);
    if (job.adds())
      for (Offsets& each : addend_offset) each.move(first, count, rows_ahead);
    y_offset.move(first, count, 0);
    statistics_offset.move(first, count, 0);
  }

  template <int64_t R>
  LAYERNORM_INLINE void normalize(const Batch<C, kBatchRows>& batch, int64_t at, RowsOf<Stored> x,
                                  RowsOf<Stored> y, int64_t begin, int64_t end) const {
    NormalizeRows<Stored, centered, A, R> rows;
    rows.weight = weight;
    rows.bias = bias;
    rows.ahead = x_offset.ahead();
    for (int64_t r = 0; r < R; ++r) {
      rows.normalizer[r] = Normalizer<C>(batch[at + r]);
      rows.x[r] = x[at + r];
      rows.y[r] = y[at + r];
    }
    if constexpr (R == 1) {
      if (task.stream) return walk_columns<true, Stored>(rows, begin, end);
    }
    walk_columns<false, Stored>(rows, begin, end);
  }

  // Columns [begin, end) of rows [first, count) of a batch.
  __attribute__((noinline)) void write_part(const Batch<C, kBatchRows>& batch, int64_t first,
                                            int64_t count, int64_t begin, int64_t end) const {
    const RowsOf<Stored> of_x = x(), of_y = y();
    for (; begin < end; begin += kBlockCols) {
      const int64_t block_end = std::min(end, begin + kBlockCols);
      int64_t at = first;
      if (!task.stream)
        for (; at + 2 <= count; at += 2) normalize<2>(batch, at, of_x, of_y, begin, block_end);
      for (; at < count; ++at) normalize<1>(batch, at, of_x, of_y, begin, block_end);
    }
  }

  // Writes x, of rows that the rest then finds in the cache.
  __attribute__((noinline)) void add(int64_t count) const {
    const int64_t a_ahead = addend_offset[0].ahead(), b_ahead = addend_offset[1].ahead();
    const RowsOf<Stored> a = addend_offset[0].rows_of<Stored>(job.addends[0]),
                         b = addend_offset[1].rows_of<Stored>(job.addends[1]), to = x();
    for (int64_t at = 0; at < count; ++at) {
      const Sum<Stored> sum = {a[at], b[at], to[at]};
      parts.each([&](int64_t, int64_t begin, int64_t end) {
        if (a_ahead != 0) prefetch(sum.a + a_ahead, sum.b + b_ahead, begin, end);
        add_elements(sum, begin, end);
      });
    }
  }

  void save_batch(const Batch<C, kBatchRows>& batch, int64_t first, int64_t count) const {
    const Statistics& to = problem.statistics;
    if (!statistics_offset.are_neighbors()) {
      for (int64_t at = 0; at < count; ++at) save(batch[at], to, statistics_offset(first + at));
      return;
    }
    const auto copy = [&](const C* from, void* all) {
      if (all) std::copy(from, from + count, static_cast<C*>(all) + first);
    };
    copy(batch.mean, to.mean);
    copy(batch.rstd, to.rstd);
    copy(batch.residual, to.residual);
  }

  void batch(int64_t first, int64_t count) {
    Batch<C, kBatchRows> batch;
    if (task.cache == Cache::none && !task.stream && !task.threads)
      for (int64_t at = 0; at < count; ++at) prefetch_for_writing(y()[at], cols);
    if (job.adds()) add(count);
    compute_statistics<Stored, centered>(x(), count, parts, problem.eps, batch);
    if (!batch.are_ordinary(count)) return one_by_one(batch, first, count);
    parts.each(
        [&](int64_t, int64_t begin, int64_t end) { write_part(batch, 0, count, begin, end); });
    save_batch(batch, first, count);
  }

  void one_by_one(const Batch<C, kBatchRows>& batch, int64_t first, int64_t count) {
    for (int64_t at = 0; at < count; ++at) {
      const int64_t row = first + at;
      if (batch.is_ordinary(at)) {
        write_part(batch, at, at + 1, 0, cols);
        save(batch[at], problem.statistics, statistics_offset(row));
      } else {
        const auto scaled = forward_scaled_rows<Stored, centered>(
            AlongRow<Stored>{cols}, RowOf<const Stored>{x()[at], 1}, weight, bias, problem.eps,
            RowOf<Stored>{y()[at], 1});
        save(scaled.unscaled[0], problem.statistics, statistics_offset(row));
      }
    }
  }
};

template <class Stored, bool centered, class A>
void forward_rows(const ForwardTask& task, int64_t begin, int64_t end) {
  RowsForward<Stored, centered, A> rows{task};
  const int64_t batch_rows = rows_per_batch<Stored>(rows.cols, task.cache);
  for (int64_t first = begin; first < end;) {
    const int64_t count = rows.rows_together(first, std::min(batch_rows, end - first));
    rows.move_to(first, count, task.prefetch && end - first >= 2 * batch_rows ? count : 0);
    rows.batch(first, count);
    first += count;
  }
  if (task.stream) finish_streaming();
}
