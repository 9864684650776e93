// Forward over strided rows (channels first): neighboring rows in neighboring lanes, a strip of
// them from the first column to the last. Lanes do not mix, so a row's bits do not depend on its
// strip.
#pragma once

// V vectors of rows side by side; whole, or only the first `count` rows of them.
template <int V, bool whole>
struct Strip {
  int64_t count;

  template <class C>
  int64_t rows_in(int v) const {
    return std::max(int64_t{0}, std::min(lanes<C>, count - v * lanes<C>));
  }
  template <class Stored>
  Vector<Compute<Stored>> read(const Stored* from, int v) const {
    using C = Compute<Stored>;
    from += v * lanes<C>;
    if (whole || rows_in<C>(v) == lanes<C>) return load(from);
    return load_first(from, rows_in<C>(v));
  }
  // `streamed`: a whole strip goes past the cache.
  template <class Stored>
  void write(Stored* to, int v, Vector<Compute<Stored>> value, bool streamed) const {
    using C = Compute<Stored>;
    to += v * lanes<C>;
    if (whole && streamed) return stream(to, value);
    if (whole || rows_in<C>(v) == lanes<C>) return store(to, value);
    store_first(to, value, rows_in<C>(v));
  }
  template <class C>
  int64_t rows() const {
    return whole ? V * lanes<C> : count;
  }
};

// Calls f(strip, first row of it) over `rows` neighboring rows.
template <class C, class F>
inline void for_each_strip(int64_t rows, F f) {
  constexpr int64_t W = lanes<C>;
  int64_t row = 0;
  for (; row + 4 * W <= rows; row += 4 * W) f(Strip<4, true>{4 * W}, row);
  if (row + W < rows)
    f(Strip<4, false>{rows - row}, row);
  else if (row < rows)
    f(Strip<1, false>{rows - row}, row);
}

// Prefetches what the next strip will read at this column: strides of many kilobytes defeat the
// processor's prefetcher.
template <int V, class Stored>
inline void prefetch_next_strip(const Stored* from) {
  constexpr int64_t bytes = V * lanes<Compute<Stored>> * static_cast<int64_t>(sizeof(Stored));
  for (int64_t at = bytes; at < 2 * bytes; at += kLine)
    __builtin_prefetch(reinterpret_cast<const char*>(from) + at, 0, 2);
}

// The most rows of a strip.
template <class C>
constexpr int64_t kStripRows = 4 * lanes<C>;

constexpr int64_t kGuessColumns = 16;  // read for the first guess of the means

// The most additions to a lane before it is flushed. A row has one lane here, so the roundings of
// equal terms are not averaged over lanes: 16 of them could be off by 3 ulp. Sums of float64 are
// shorter, as no wider type takes the roundings that follow.
template <class C>
constexpr int64_t kFlushColumns = sizeof(C) == sizeof(float) ? 6 : 4;

// As kWellCentered; a lane of floats has fewer terms here, and the guess is of fewer columns.
template <class C>
constexpr double kWellCenteredStrips = sizeof(C) == sizeof(float) ? 1 : kWellCentered;

template <class Stored, bool centered, int V, bool whole>
struct StripStatistics {
  using C = Compute<Stored>;
  static constexpr int64_t W = lanes<C>;

  Batch<C, kStripRows<C>> batch;

  void guess(Strip<V, whole> strip, const Stored* x, int64_t stride, int64_t cols) {
    const int64_t taken = std::min(cols, kGuessColumns);
    for (int v = 0; v < V; ++v) {
      Vector<C> total = {};
      for (int64_t col = 0; col < taken; ++col) total += strip.read(x + col * stride, v);
      store(batch.shift + v * W, as_shift(total / broadcast(static_cast<C>(taken))));
    }
  }

  void sum_moments(Strip<V, whole> strip, const Stored* x, int64_t stride, int64_t cols) {
    Vector<C> center[V];
    LAYERNORM_UNROLL
    for (int v = 0; v < V; ++v) center[v] = load(batch.shift + v * W);
    LaneTotal<C> total[V] = {}, total_squares[V] = {};
    for (int64_t col = 0; col < cols;) {
      const int64_t flush = std::min(cols, col + kFlushColumns<C>);
      Vector<C> sum[V] = {}, squares[V] = {};
      for (; col < flush; ++col) {
        const Stored* at = x + col * stride;
        prefetch_next_strip<V>(at);
        LAYERNORM_UNROLL
        for (int v = 0; v < V; ++v) {
          const Vector<C> d = strip.read(at, v) - center[v];
          if constexpr (centered) sum[v] += d;
          squares[v] = fma(d, d, squares[v]);
        }
      }
      LAYERNORM_UNROLL
      for (int v = 0; v < V; ++v) {
        if constexpr (centered) total[v].add(sum[v]);
        total_squares[v].add(squares[v]);
      }
    }
    for (int v = 0; v < V; ++v) {
      total[v].store(batch.sum + v * W);
      total_squares[v].store_in_two(batch.squares + v * W, batch.rest_of_squares(v * W));
    }
  }

  void compute(Strip<V, whole> strip, const Stored* x, int64_t stride, int64_t cols, double eps) {
    const double n = static_cast<double>(cols);
    const int64_t rows = strip.template rows<C>();
    if constexpr (centered)
      guess(strip, x, stride, cols);
    else
      std::fill(batch.shift, batch.shift + V * W, C{});
    sum_moments(strip, x, stride, cols);
    if constexpr (centered) {
      // Sums all rows again; those whose shift did not change get the same sums as before.
      bool again = false;
      batch.recenter(rows, n, kWellCenteredStrips<C>, [&](int64_t) { again = true; });
      if (again) sum_moments(strip, x, stride, cols);
    }
    batch.finish(rows, n, [&](int64_t) { return broadcast(eps); });
  }
};

template <class C>
inline Normalizer<C> normalizer_of(const Batch<C, kStripRows<C>>& batch, int64_t first) {
  return {load(batch.mean + first), load(batch.residual + first), load(batch.rstd + first)};
}

template <class Stored, bool centered>
struct ColumnsForward {
  using C = Compute<Stored>;
  static constexpr int64_t W = lanes<C>;

  const ForwardTask& task;
  const Forward& job = *task.job;
  const Problem& problem = job.problem;
  const int64_t cols = problem.shape.cols;
  const C* const weight = static_cast<const C*>(task.weight);
  const C* const bias = static_cast<const C*>(task.bias);

  const Stored* x(int64_t outer, int64_t inner) const {
    return static_cast<const Stored*>(problem.x.data) +
           offset_of(problem.shape, problem.x.strides, outer) + inner;
  }
  Stored* y(int64_t outer, int64_t inner) const {
    return static_cast<Stored*>(job.y.data) + offset_of(problem.shape, job.y.strides, outer) +
           inner;
  }
  int64_t statistics_at(int64_t outer, int64_t inner) const {
    return offset_of(problem.shape, problem.statistics.strides, outer) + inner;
  }

  // Writes x, of rows that the rest then finds in the cache.
  __attribute__((noinline)) void add(int64_t outer, int64_t inner, int64_t count) const {
    const Array* const arrays[3] = {&job.addends[0], &job.addends[1], &problem.x};
    Stored* at[3];
    for (int k = 0; k < 3; ++k)
      at[k] = static_cast<Stored*>(arrays[k]->data) +
              offset_of(problem.shape, arrays[k]->strides, outer) + inner;
    for (int64_t col = 0; col < cols; ++col) {
      add_elements(Sum<Stored>{at[0], at[1], at[2]}, 0, count);
      for (int k = 0; k < 3; ++k) at[k] += arrays[k]->col_stride;
    }
  }

  template <int V, bool whole>
  void strip(Strip<V, whole> strip, int64_t outer, int64_t inner) const {
    const int64_t count = strip.template rows<C>();
    if (job.adds()) add(outer, inner, count);
    const Stored* from = x(outer, inner);
    Stored* to = y(outer, inner);
    StripStatistics<Stored, centered, V, whole> rows;
    rows.compute(strip, from, problem.x.col_stride, cols, problem.eps);
    if (!rows.batch.are_ordinary(count))
      return strip_with_scaled_rows(rows.batch, count, outer, inner);
    write_y(strip, rows, from, to);
    const int64_t at = statistics_at(outer, inner);
    for (int64_t row = 0; row < count; ++row) save(rows.batch[row], problem.statistics, at + row);
  }

  template <int V, bool whole>
  LAYERNORM_INLINE void write_y(Strip<V, whole> strip,
                                const StripStatistics<Stored, centered, V, whole>& statistics,
                                const Stored* from, Stored* to) const {
    Normalizer<C> normalizer[V];
    LAYERNORM_UNROLL
    for (int v = 0; v < V; ++v) normalizer[v] = normalizer_of(statistics.batch, v * W);
    const int64_t x_stride = problem.x.col_stride, y_stride = job.y.col_stride;
    const C *weights = weight, *biases = bias;
    for (int64_t col = 0; col < cols; ++col) {
      const Vector<C> w = broadcast(weights ? weights[col] : 1);
      const Vector<C> b = broadcast(biases ? biases[col] : 0);
      LAYERNORM_UNROLL
      for (int v = 0; v < V; ++v) {
        const Vector<C> xhat =
            normalizer[v].template normalized<centered>(strip.read(from + col * x_stride, v));
        strip.write(to + col * y_stride, v, fma(xhat, w, b), task.stream);
      }
    }
  }

  // y may be x: the usual rows of a vector are written first, around the others.
  __attribute__((noinline)) void strip_with_scaled_rows(const Batch<C, kStripRows<C>>& batch,
                                                        int64_t count, int64_t outer,
                                                        int64_t inner) const {
    for (int64_t first = 0; first < count; first += W) {
      const RowOf<const Stored> x_rows = {x(outer, inner + first), problem.x.col_stride};
      const RowOf<Stored> y_rows = {y(outer, inner + first), job.y.col_stride};
      const int64_t statistics = statistics_at(outer, inner) + first;
      const auto is_usual = [&](int64_t row) { return batch.is_ordinary(first + row); };
      const AcrossRows<Stored> usual(cols, std::min(W, count - first), is_usual);
      const Normalizer<C> normalizer = normalizer_of(batch, first);
      const Vector<C> one = broadcast(C{1}), zero = {};
      if (usual.count_wanted() > 0)
        usual.write(y_rows, [&](const auto& at) {
          const Vector<C> xhat = normalizer.template normalized<centered>(at.read(x_rows));
          return fma(xhat, weight ? at.parameter(weight) : one, bias ? at.parameter(bias) : zero);
        });
      for (int64_t row = 0; row < usual.rows; ++row)
        if (is_usual(row)) save(batch[first + row], problem.statistics, statistics + row);
      if (usual.count_wanted() == usual.rows) continue;
      const AcrossRows<Stored> others = usual.others();
      const auto scaled =
          forward_scaled_rows<Stored, centered>(others, x_rows, weight, bias, problem.eps, y_rows);
      for (int64_t row = 0; row < usual.rows; ++row)
        if (!is_usual(row)) save(scaled.unscaled[row], problem.statistics, statistics + row);
    }
  }
};

// Unit u is tile u % tiles of outer u / tiles.
template <class F>
inline void for_each_tile(const Shape& shape, int64_t begin, int64_t end, F f) {
  const int64_t tiles = (shape.inner + kTileRows - 1) / kTileRows;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t inner = unit % tiles * kTileRows;
    f(unit / tiles, inner, std::min(kTileRows, shape.inner - inner));
  }
}

template <class Stored, bool centered>
void forward_columns(const ForwardTask& task, int64_t begin, int64_t end) {
  const ColumnsForward<Stored, centered> columns{task};
  for_each_tile(
      task.job->problem.shape, begin, end, [&](int64_t outer, int64_t inner, int64_t rows) {
        for_each_strip<Compute<Stored>>(
            rows, [&](auto strip, int64_t row) { columns.strip(strip, outer, inner + row); });
      });
  if (task.stream) finish_streaming();
}
