// Forward, the normalized axis strided (channels first): neighboring rows in neighboring lanes, a
// strip of them walked down the columns. Each lane's arithmetic is its own, so a row's bits do not
// depend on the strip it falls into.
#pragma once

// V vectors of rows side by side; the last, or only, vector may hold just `count` rows.
template <int V, bool whole>
struct Strip {
  int64_t count;
  template <class Stored>
  Vector<Compute<Stored>> read(const Stored* from, int v) const {
    if constexpr (whole)
      return load(from + v * lanes<Compute<Stored>>);
    else
      return load_first(from, count);
  }
  template <class Stored>
  void write(Stored* to, int v, Vector<Compute<Stored>> value) const {
    if constexpr (whole)
      store(to + v * lanes<Compute<Stored>>, value);
    else
      store_first(to, value, count);
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
  for (; row + W <= rows; row += W) f(Strip<1, true>{W}, row);
  if (row < rows) f(Strip<1, false>{rows - row}, row);
}

// A column ahead of the walk; strides longer than a page defeat the processor's own prefetching.
constexpr int64_t kPrefetchColumns = 8;

template <int V, class Stored>
inline void prefetch_column(const Stored* from, int64_t stride) {
  const char* ahead = reinterpret_cast<const char*>(from + kPrefetchColumns * stride);
  for (int line = 0; line < V; ++line) __builtin_prefetch(ahead + 64 * line);
}

template <class Stored, bool centered, int V, bool whole>
struct StripStatistics {
  using C = Compute<Stored>;
  static constexpr int64_t W = lanes<C>;
  static constexpr int64_t kGuess = 16;  // columns that the first guess of the means takes

  alignas(64) C shift[V * W];
  alignas(64) C mean[V * W];
  alignas(64) C residual[V * W];
  alignas(64) C rstd[V * W];
  alignas(64) double sum[V * W];
  alignas(64) double squares[V * W];
  bool ordinary = true;  // all rows of the strip

  void guess(Strip<V, whole> strip, const Stored* x, int64_t stride, int64_t cols) {
    const int64_t taken = std::min(cols, kGuess);
    for (int v = 0; v < V; ++v) {
      Vector<C> total = {};
      for (int64_t col = 0; col < taken; ++col) total += strip.read(x + col * stride, v);
      store(shift + v * W, total / broadcast(static_cast<C>(taken)));
    }
  }

  void moments(Strip<V, whole> strip, const Stored* x, int64_t stride, int64_t cols) {
    Vector<C> center[V];
    for (int v = 0; v < V; ++v) center[v] = load(shift + v * W);
    LaneTotal<C> total[V], total_squares[V];
    for (int64_t col = 0; col < cols;) {
      const int64_t flush = std::min(cols, col + kFlush);
      Vector<C> part[V] = {}, part_squares[V] = {};
      for (; col < flush; ++col) {
        const Stored* at = x + col * stride;
        prefetch_column<V>(at, stride);
        for (int v = 0; v < V; ++v) {
          const Vector<C> d = strip.read(at, v) - center[v];
          part[v] += d;
          part_squares[v] = fma(d, d, part_squares[v]);
        }
      }
      for (int v = 0; v < V; ++v) {
        if constexpr (centered) total[v].add(part[v]);
        total_squares[v].add(part_squares[v]);
      }
    }
    for (int v = 0; v < V; ++v) {
      total[v].store(sum + v * W);
      total_squares[v].store(squares + v * W);
    }
  }

  void compute(Strip<V, whole> strip, const Stored* x, int64_t stride, int64_t cols, double eps) {
    const double n = static_cast<double>(cols);
    std::fill(shift, shift + V * W, C{});
    if constexpr (centered) guess(strip, x, stride, cols);
    moments(strip, x, stride, cols);
    if constexpr (centered) {
      bool again = false;
      for (int64_t lane = 0; lane < strip.template rows<C>(); ++lane) {
        const double delta = sum[lane] / n;
        if (is_well_centered(delta, (squares[lane] - sum[lane] * delta) / n)) continue;
        shift[lane] = static_cast<C>(static_cast<double>(shift[lane]) + delta);
        again = true;
      }
      if (again) moments(strip, x, stride, cols);
    }
    for (int64_t lane = 0; lane < strip.template rows<C>(); ++lane) {
      const double delta = sum[lane] / n;
      RowStatistics<C> row;
      finish_statistics(shift[lane], delta, (squares[lane] - sum[lane] * delta) / n, eps, row);
      mean[lane] = centered ? row.mean : 0;
      residual[lane] = centered ? row.residual : 0;
      rstd[lane] = row.rstd;
      ordinary = ordinary && row.ordinary;
    }
    // Lanes without a row are computed with, and never written.
    for (int64_t lane = strip.template rows<C>(); lane < V * W; ++lane)
      mean[lane] = residual[lane] = rstd[lane] = 0;
  }

  Normalizer<C> normalizer(int v) const {
    return {load(mean + v * W), load(residual + v * W), load(rstd + v * W)};
  }
};

template <class Stored, bool centered, class A>
struct ColumnsForward {
  using C = Compute<Stored>;

  const ForwardTask& task;
  const Problem& problem = task.job->problem;
  const int64_t cols = problem.shape.cols;
  const C* const weight = static_cast<const C*>(task.weight);
  const C* const bias = static_cast<const C*>(task.bias);

  const Stored* x(int64_t outer, int64_t inner) const {
    return static_cast<const Stored*>(problem.x.data) + outer * problem.x.outer_stride + inner;
  }
  Stored* y(int64_t outer, int64_t inner) const {
    return static_cast<Stored*>(task.job->y.data) + outer * task.job->y.outer_stride + inner;
  }

  template <int V, bool whole>
  void strip(Strip<V, whole> strip, int64_t outer, int64_t inner) const {
    const int64_t x_stride = problem.x.col_stride, y_stride = task.job->y.col_stride;
    const Stored* from = x(outer, inner);
    Stored* to = y(outer, inner);
    const int64_t index = outer * problem.shape.inner + inner;
    StripStatistics<Stored, centered, V, whole> rows;
    rows.compute(strip, from, x_stride, cols, problem.eps);
    if (!rows.ordinary) return one_by_one(strip.template rows<C>(), outer, inner);
    Normalizer<C> normalizer[V];
    for (int v = 0; v < V; ++v) normalizer[v] = rows.normalizer(v);
    for (int64_t col = 0; col < cols; ++col) {
      const Vector<C> w = A::has_weight ? broadcast(weight[col]) : Vector<C>{};
      const Vector<C> b = A::has_bias ? broadcast(bias[col]) : Vector<C>{};
      for (int v = 0; v < V; ++v) {
        const Vector<C> xhat = normalizer[v].template normalized<centered>(
            strip.read(from + col * x_stride, v));
        strip.write(to + col * y_stride, v, scale_and_shift<A, C>(xhat, w, b));
      }
    }
    for (int64_t lane = 0; lane < strip.template rows<C>(); ++lane)
      save<C>({rows.mean[lane], rows.residual[lane], rows.rstd[lane], true}, problem.statistics,
              index + lane);
  }

  // A row of the strip needs the wide path, and y may be x: each row goes alone.
  void one_by_one(int64_t count, int64_t outer, int64_t inner) const {
    for (int64_t row = 0; row < count; ++row) {
      if (count > 1) {
        strip(Strip<1, false>{1}, outer, inner + row);
        continue;
      }
      const RowOf<const Stored> from = {x(outer, inner), problem.x.col_stride};
      const RowOf<Stored> to = {y(outer, inner), task.job->y.col_stride};
      save(forward_wide_row<Stored, centered>(from, weight, bias, problem.eps, to, cols),
           problem.statistics, outer * problem.shape.inner + inner);
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

template <class Stored, bool centered, class A>
void forward_columns(const ForwardTask& task, int64_t begin, int64_t end) {
  const ColumnsForward<Stored, centered, A> columns{task};
  for_each_tile(task.job->problem.shape, begin, end,
                [&](int64_t outer, int64_t inner, int64_t rows) {
                  for_each_strip<Compute<Stored>>(rows, [&](auto strip, int64_t row) {
                    columns.strip(strip, outer, inner + row);
                  });
                });
}
