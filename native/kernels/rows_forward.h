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
inline void save(const C* from, void* to, int64_t first, int64_t count) {
  if (to) std::copy(from, from + count, static_cast<C*>(to) + first);
}
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
  int64_t ahead = 0;

  const Stored* x(int64_t row) const {
    return static_cast<const Stored*>(problem.x.data) + row * problem.x.outer_stride;
  }
  Stored* y(int64_t row) const {
    return static_cast<Stored*>(job.y.data) + row * job.y.outer_stride;
  }

  template <int64_t R>
  LAYERNORM_INLINE void normalize(const Batch<C, kBatchRows>& batch, int64_t at, int64_t row,
                                  int64_t begin, int64_t end) const {
    NormalizeRows<Stored, centered, A, R> rows;
    rows.weight = weight;
    rows.bias = bias;
    rows.ahead = ahead;
    for (int64_t r = 0; r < R; ++r) {
      rows.normalizer[r] = Normalizer<C>(batch[at + r]);
      rows.x[r] = x(row + r);
      rows.y[r] = y(row + r);
    }
    if constexpr (R == 1) {
      if (task.stream) return walk_columns<true, Stored>(rows, begin, end);
    }
    walk_columns<false, Stored>(rows, begin, end);
  }

  __attribute__((noinline)) void write_part(const Batch<C, kBatchRows>& batch, int64_t first,
                                            int64_t count, int64_t begin, int64_t end) const {
    for (; begin < end; begin += kBlockCols) {
      const int64_t block_end = std::min(end, begin + kBlockCols);
      int64_t at = 0;
      if (!task.stream)
        for (; at + 2 <= count; at += 2) normalize<2>(batch, at, first + at, begin, block_end);
      for (; at < count; ++at) normalize<1>(batch, at, first + at, begin, block_end);
    }
  }

  void batch(int64_t first, int64_t count) {
    Batch<C, kBatchRows> batch;
    if (task.cache == Cache::none && !task.stream && !task.threads)
      for (int64_t row = first; row < first + count; ++row) prefetch_for_writing(y(row), cols);
    compute_statistics<Stored, centered>(x(first), problem.x.outer_stride, count, parts,
                                         problem.eps, batch);
    if (!batch.are_ordinary(count)) return one_by_one(batch, first, count);
    parts.each(
        [&](int64_t, int64_t begin, int64_t end) { write_part(batch, first, count, begin, end); });
    const Statistics& statistics = problem.statistics;
    save(batch.mean, statistics.mean, first, count);
    save(batch.rstd, statistics.rstd, first, count);
    save(batch.residual, statistics.residual, first, count);
  }

  void one_by_one(const Batch<C, kBatchRows>& batch, int64_t first, int64_t count) {
    for (int64_t at = 0; at < count; ++at) {
      const int64_t row = first + at;
      if (batch.is_ordinary(at)) {
        normalize<1>(batch, at, row, 0, cols);
        save(batch[at], problem.statistics, row);
      } else {
        const auto scaled = forward_scaled_rows<Stored, centered>(
            AlongRow{cols}, RowOf<const Stored>{x(row), 1}, weight, bias, problem.eps,
            RowOf<Stored>{y(row), 1});
        save(scaled.unscaled(0), problem.statistics, row);
      }
    }
  }
};

template <class Stored, bool centered, class A>
void forward_rows(const ForwardTask& task, int64_t begin, int64_t end) {
  RowsForward<Stored, centered, A> rows{task};
  const int64_t batch_rows = rows_per_batch<Stored>(rows.cols, task.cache);
  for (int64_t first = begin; first < end; first += batch_rows) {
    const bool prefetch = task.prefetch && end - first >= 2 * batch_rows;
    rows.ahead = prefetch ? batch_rows * rows.problem.x.outer_stride : 0;
    rows.batch(first, std::min(batch_rows, end - first));
  }
  if (task.stream) finish_streaming();
}
