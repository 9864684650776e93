// Forward, the normalized axis contiguous: one row after another, each read from memory once while
// it fits the cache.
#pragma once

// Which parameters the layer has; a template argument, so that what is absent costs nothing.
template <bool weight, bool bias>
struct Affine {
  static constexpr bool has_weight = weight;
  static constexpr bool has_bias = bias;
};

// What turns x into xhat, and xhat into y, for one row or (columns) one row per lane.
template <class C>
struct Normalizer {
  Vector<C> mean, rstd, offset;

  Normalizer() = default;
  Normalizer(Vector<C> mean_, Vector<C> residual, Vector<C> rstd_)
      : mean(mean_), rstd(rstd_), offset(-(residual * rstd_)) {}
  explicit Normalizer(const RowStatistics<C>& row)
      : Normalizer(broadcast(row.mean), broadcast(row.residual), broadcast(row.rstd)) {}

  template <bool centered>
  Vector<C> normalized(Vector<C> x) const {
    if constexpr (centered) return fma(x - mean, rstd, offset);
    return x * rstd;
  }
};

template <class A, class C>
inline Vector<C> scale_and_shift(Vector<C> xhat, Vector<C> weight, Vector<C> bias) {
  if constexpr (A::has_weight && A::has_bias) return fma(xhat, weight, bias);
  if constexpr (A::has_weight) return xhat * weight;
  if constexpr (A::has_bias) return xhat + bias;
  return xhat;
}

template <class Stored, bool centered, class A, bool streamed>
inline void normalize_row(const Normalizer<Compute<Stored>>& row, const Stored* x,
                          const Compute<Stored>* weight, const Compute<Stored>* bias, Stored* y,
                          int64_t cols) {
  using C = Compute<Stored>;
  constexpr int64_t W = lanes<C>;
  const auto parameter = [](const C* values, int64_t col, int64_t count, bool has) {
    if (!has) return Vector<C>{};
    return count == W ? load(values + col) : load_first(values + col, count);
  };
  const auto value = [&](int64_t col) {
    return scale_and_shift<A, C>(row.template normalized<centered>(load(x + col)),
                                 parameter(weight, col, W, A::has_weight),
                                 parameter(bias, col, W, A::has_bias));
  };
  const auto some = [&](int64_t col, int64_t count) {
    store_first(y + col,
                scale_and_shift<A, C>(
                    row.template normalized<centered>(load_first(x + col, count)),
                    parameter(weight, col, count, A::has_weight),
                    parameter(bias, col, count, A::has_bias)),
                count);
  };
  int64_t col = 0;
  if constexpr (streamed) {
    constexpr auto alignment = sizeof(typename Packed<Stored>::type);
    const auto past = reinterpret_cast<uintptr_t>(y) % alignment;
    if (past != 0 && past % sizeof(Stored) == 0) {
      const auto head = static_cast<int64_t>((alignment - past) / sizeof(Stored));
      col = std::min(head, cols);
      some(0, col);
    }
    for (; col + W <= cols; col += W) stream(y + col, value(col));
  } else {
    for (; col + 4 * W <= cols; col += 4 * W) {
      store(y + col, value(col));
      store(y + col + W, value(col + W));
      store(y + col + 2 * W, value(col + 2 * W));
      store(y + col + 3 * W, value(col + 3 * W));
    }
    for (; col + W <= cols; col += W) store(y + col, value(col));
  }
  if (col < cols) some(col, cols - col);
}

template <class C>
inline void save(const RowStatistics<C>& row, const Statistics& statistics, int64_t index) {
  if (statistics.mean) static_cast<C*>(statistics.mean)[index] = row.mean;
  if (statistics.rstd) static_cast<C*>(statistics.rstd)[index] = row.rstd;
  if (statistics.residual) static_cast<C*>(statistics.residual)[index] = row.residual;
}

template <class Stored, bool centered, class A>
void forward_rows(const ForwardTask& task, int64_t begin, int64_t end) {
  using C = Compute<Stored>;
  const Forward& job = *task.job;
  const Problem& problem = job.problem;
  const int64_t cols = problem.shape.cols;
  const C* weight = static_cast<const C*>(task.weight);
  const C* bias = static_cast<const C*>(task.bias);
  for (int64_t index = begin; index < end; ++index) {
    const Stored* x = static_cast<const Stored*>(problem.x.data) + index * problem.x.outer_stride;
    Stored* y = static_cast<Stored*>(job.y.data) + index * job.y.outer_stride;
    RowStatistics<C> row = statistics_of<Stored, centered>(x, cols, problem.eps);
    if (!row.ordinary) {
      row = forward_wide_row<Stored, centered>({x, 1}, weight, bias, problem.eps, {y, 1}, cols);
    } else if (task.stream) {
      normalize_row<Stored, centered, A, true>(Normalizer<C>(row), x, weight, bias, y, cols);
    } else {
      normalize_row<Stored, centered, A, false>(Normalizer<C>(row), x, weight, bias, y, cols);
    }
    save(row, problem.statistics, index);
  }
  if (task.stream) finish_streaming();
}
