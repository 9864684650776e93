// Backward over strided rows, in the strips of columns_forward.h: one pass over the columns for the
// sums, one for dx.
#pragma once

// Columns whose shares of a parameter's gradient are summed over the lanes together.
constexpr int64_t kColumnGroup = lanes<double>;

// The most additions to a lane of the sums along the rows, few for the reason at kFlushColumns.
constexpr int64_t kFlushBackward = 4;
static_assert(kColumnGroup <= 2 * kFlushBackward, "flushed once within a group, and at its end");

template <class C>
struct ColumnGroup {
  DoubleVector share[kColumnGroup] = {};
  void put(int64_t k, Vector<C> v) {
    share[k] = first_half_as_doubles(v) + second_half_as_doubles(v);
  }
  void sums(C* to) const { store_doubles(to, sums_of_lanes(share)); }
};
template <>
struct ColumnGroup<double> {
  double share[kColumnGroup] = {};
  void put(int64_t k, DoubleVector v) {
    LaneTotal<double> total = {};
    total.add(v);
    share[k] = total.sum();
  }
  void sums(double* to) const { std::memcpy(to, share, sizeof(share)); }
};

template <class C>
inline void add_group(const ColumnGroup<C>& group, C* __restrict high, C* __restrict low,
                      int64_t count) {
  C value[kColumnGroup];
  group.sums(value);
  for (int64_t k = 0; k < count; ++k) {
    const C before = high[k], sum = before + value[k];
    const C error = two_sum_error(before, value[k], sum);
    high[k] = sum;
    low[k] += sum - sum == 0 ? error : 0;
  }
}

template <class Stored, bool centered>
struct ColumnsBackward {
  using C = Compute<Stored>;
  static constexpr int64_t W = lanes<C>;

  const BackwardTask& task;
  const Wanted wanted;
  const Problem& problem = task.job->problem;
  const int64_t cols = problem.shape.cols;
  const double n = static_cast<double>(cols);
  const C* const weight = static_cast<const C*>(task.weight);

  int64_t offset(const Array& array, int64_t outer) const {
    return offset_of(problem.shape, array.strides, outer);
  }
  RowOf<const Stored> x(int64_t outer, int64_t inner) const {
    return {static_cast<const Stored*>(problem.x.data) + offset(problem.x, outer) + inner,
            problem.x.col_stride};
  }
  RowOf<const Stored> dy(int64_t outer, int64_t inner) const {
    const Array& from = task.job->dy;
    return {static_cast<const Stored*>(from.data) + offset(from, outer) + inner, from.col_stride};
  }
  RowOf<const Stored> dtotal(int64_t outer, int64_t inner) const {
    const Array& from = task.job->dtotal;
    if (!from.data) return {};
    return {static_cast<const Stored*>(from.data) + offset(from, outer) + inner, from.col_stride};
  }
  RowOf<Stored> dx(int64_t outer, int64_t inner) const {
    const Array& to = task.job->dx;
    return {static_cast<Stored*>(to.data) + offset(to, outer) + inner, to.col_stride};
  }

  // The statistics of rows side by side; those of lanes past them are 0, and so is their xhat.
  struct RowLanes {
    alignas(64) C mean[kStripRows<C>] = {}, residual[kStripRows<C>] = {}, rstd[kStripRows<C>] = {};

    Normalizer<C> normalizer(int v) const {
      return {load(mean + v * W), load(residual + v * W), load(rstd + v * W)};
    }
    bool is_ordinary(int64_t lane) const { return is_ordinary_rstd(rstd[lane]); }
    RowStatistics<C> operator[](int64_t lane) const {
      return {mean[lane], residual[lane], rstd[lane], is_ordinary(lane)};
    }
  };

  RowLanes saved(int64_t outer, int64_t inner, int64_t count) const {
    const Statistics& from = problem.statistics;
    const int64_t row = offset_of(problem.shape, from.strides, outer) + inner;
    const auto copy = [&](const void* all, C* to) {
      std::copy_n(static_cast<const C*>(all) + row, count, to);
    };
    RowLanes rows;
    copy(from.rstd, rows.rstd);
    if constexpr (centered) {
      copy(from.mean, rows.mean);
      if (from.residual) {
        copy(from.residual, rows.residual);
      } else {
        for (int64_t lane = 0; lane < count; ++lane)
          rows.residual[lane] = residual_of(rows.mean[lane], x(outer, inner + lane), cols);
      }
    }
    return rows;
  }

  // The sums of each row, and each column's share of the parameters' gradients.
  template <int V, bool whole>
  void sum_columns(Strip<V, whole> strip, const RowLanes& rows, int64_t outer, int64_t inner,
                   const PartialSums<C>& sums, double* sum_g, double* sum_g_xhat,
                   double* squares_beyond_n) const {
    const RowOf<const Stored> x_rows = x(outer, inner), dy_rows = dy(outer, inner);
    Normalizer<C> normalizer[V];
    LAYERNORM_UNROLL
    for (int v = 0; v < V; ++v) normalizer[v] = rows.normalizer(v);
    LaneTotal<C> total_g[V] = {}, total_g_xhat[V] = {}, total_squares[V] = {};
    ColumnGroup<C> group_dweight, group_dbias;
    for (int64_t first = 0; first < cols; first += kColumnGroup) {
      const int64_t count = std::min(cols - first, kColumnGroup);
      Vector<C> part_g[V] = {}, part_g_xhat[V] = {}, part_squares[V] = {};
      const auto flush = [&] {
        LAYERNORM_UNROLL
        for (int v = 0; v < V; ++v) {
          if constexpr (centered) total_g[v].add(part_g[v]);
          total_g_xhat[v].add(part_g_xhat[v]);
          total_squares[v].add(part_squares[v]);
          part_g[v] = part_g_xhat[v] = part_squares[v] = Vector<C>{};
        }
      };
      for (int64_t k = 0; k < count; ++k) {
        if (k == kFlushBackward) flush();
        const int64_t col = first + k;
        const Vector<C> w = broadcast(weight ? weight[col] : 1);
        Vector<C> dweight = {}, dbias = {};
        prefetch_next_strip<V>(&x_rows[col]);
        prefetch_next_strip<V>(&dy_rows[col]);
        LAYERNORM_UNROLL
        for (int v = 0; v < V; ++v) {
          const Vector<C> dy_here = strip.read(&dy_rows[col], v);
          const Vector<C> xhat =
              normalizer[v].template normalized<centered>(strip.read(&x_rows[col], v));
          const Vector<C> g = dy_here * w;
          if constexpr (centered) part_g[v] += g;
          part_g_xhat[v] = fma(g, xhat, part_g_xhat[v]);
          part_squares[v] = fma(xhat, xhat, part_squares[v]);
          dweight = fma(dy_here, xhat, dweight);
          dbias += dy_here;
        }
        if (wanted != Wanted::nothing) group_dweight.put(k, dweight);
        if (wanted == Wanted::both) group_dbias.put(k, dbias);
      }
      if (wanted != Wanted::nothing)
        add_group(group_dweight, sums.dweight_high + first, sums.dweight_low + first, count);
      if (wanted == Wanted::both)
        add_group(group_dbias, sums.dbias_high + first, sums.dbias_low + first, count);
      flush();
    }
    LAYERNORM_UNROLL
    for (int v = 0; v < V; ++v) {
      total_g[v].store(sum_g + v * W);
      total_g_xhat[v].store(sum_g_xhat + v * W);
      total_squares[v].store(squares_beyond_n + v * W, n);
    }
  }

  // What dx needs of a vector of rows.
  struct Gradient {
    Normalizer<C> normalizer;
    Vector<C> mean_g, minus_slope;

    LAYERNORM_INLINE Vector<C> value(Vector<C> x_here, Vector<C> g) const {
      const Vector<C> xhat = normalizer.template normalized<centered>(x_here);
      if constexpr (centered) g -= mean_g;
      return fma(g, normalizer.rstd, xhat * minus_slope);
    }
  };

  template <int V, bool whole>
  LAYERNORM_INLINE void write_dx(Strip<V, whole> strip, const RowLanes& rows, int64_t outer,
                                 int64_t inner, const C* mean_g, const C* slope) const {
    const RowOf<const Stored> x_rows = x(outer, inner), dy_rows = dy(outer, inner);
    const RowOf<const Stored> dtotal_rows = dtotal(outer, inner);
    const RowOf<Stored> dx_rows = dx(outer, inner);
    const C* const weights = weight;
    Gradient gradient[V];
    LAYERNORM_UNROLL
    for (int v = 0; v < V; ++v)
      gradient[v] = {rows.normalizer(v), load(mean_g + v * W), -load(slope + v * W)};
    for (int64_t col = 0; col < cols; ++col) {
      const Vector<C> w = broadcast(weights ? weights[col] : 1);
      LAYERNORM_UNROLL
      for (int v = 0; v < V; ++v) {
        const Vector<C> g = strip.read(&dy_rows[col], v) * w;
        Vector<C> value = gradient[v].value(strip.read(&x_rows[col], v), g);
        if (dtotal_rows.data) value += strip.read(&dtotal_rows[col], v);
        strip.write(&dx_rows[col], v, value, task.stream);
      }
    }
  }

  template <int V, bool whole>
  void strip(Strip<V, whole> strip_rows, int64_t outer, int64_t inner,
             const PartialSums<C>& sums) const {
    const int64_t count = strip_rows.template rows<C>();
    const RowLanes all = saved(outer, inner, count);
    RowLanes rows = all;
    bool ordinary = true;
    for (int64_t lane = 0; lane < count; ++lane) ordinary = ordinary && all.is_ordinary(lane);
    if (!ordinary) {
      for (int64_t lane = 0; lane < count; ++lane)
        if (!all.is_ordinary(lane)) rows.mean[lane] = rows.residual[lane] = rows.rstd[lane] = 0;
    }
    alignas(64) double sum_g[V * W], sum_g_xhat[V * W], squares_beyond_n[V * W];
    sum_columns(strip_rows, rows, outer, inner, sums, sum_g, sum_g_xhat, squares_beyond_n);
    if (!ordinary && wanted != Wanted::nothing) add_scaled_rows(all, count, outer, inner, sums);
    if (!task.job->dx.data) return;
    alignas(64) C mean_g[V * W], slope[V * W];
    for (int64_t first = 0; first < V * W; first += lanes<double>) {
      const DoubleVector rstd = load_doubles(rows.rstd + first);
      const DoubleVector g = load_doubles(sum_g + first), g_xhat = load_doubles(sum_g_xhat + first);
      const DoubleVector squares = load_doubles(squares_beyond_n + first);
      store_doubles(mean_g + first, g / broadcast(n));
      store_doubles(slope + first,
                    slope_along_xhat<C>(g_xhat, squares, rstd, broadcast(problem.eps), n));
    }
    // Tiny sums are looked into only with the others of the strip.
    const auto unknown = [] { return std::numeric_limits<double>::quiet_NaN(); };
    for (int64_t lane = 0; lane < count; ++lane)
      ordinary = ordinary && are_ordinary_sums<C>(sum_g[lane], sum_g_xhat[lane],
                                                  static_cast<double>(rows.rstd[lane]), unknown);
    if (ordinary)
      write_dx(strip_rows, rows, outer, inner, mean_g, slope);
    else
      write_dx_with_scaled_rows(count, rows, all, outer, inner, sum_g, sum_g_xhat, mean_g, slope);
  }

  // dx may be dy or x: the usual rows of a vector are written first, around the others.
  __attribute__((noinline)) void write_dx_with_scaled_rows(int64_t count, const RowLanes& rows,
                                                           const RowLanes& all, int64_t outer,
                                                           int64_t inner, const double* sum_g,
                                                           const double* sum_g_xhat,
                                                           const C* mean_g, const C* slope) const {
    for (int v = 0; v * W < count; ++v) {
      const int64_t first = v * W, at_row = inner + first;
      const RowOf<const Stored> x_rows = x(outer, at_row), dy_rows = dy(outer, at_row),
                                dtotal_rows = dtotal(outer, at_row);
      const RowOf<Stored> dx_rows = dx(outer, at_row);
      const int64_t here = std::min(W, count - first);
      alignas(64) C largest[W];
      largest_g(AcrossRows<Stored>(cols, here), dy_rows, weight, largest);
      const AcrossRows<Stored> usual(cols, here, [&](int64_t lane) {
        const int64_t row = first + lane;
        return all.is_ordinary(row) &&
               are_ordinary_sums<C>(sum_g[row], sum_g_xhat[row], static_cast<double>(all.rstd[row]),
                                    [&] { return static_cast<double>(largest[lane]); });
      });
      const Gradient gradient = {rows.normalizer(v), load(mean_g + first), -load(slope + first)};
      if (usual.count_wanted() > 0)
        usual.write(dx_rows, [&](const auto& at) {
          const Vector<C> w = weight ? at.parameter(weight) : broadcast(C{1});
          Vector<C> value = gradient.value(at.read(x_rows), at.read(dy_rows) * w);
          if (dtotal_rows.data) value += at.read(dtotal_rows);
          return value;
        });
      if (usual.count_wanted() == usual.rows) continue;
      const AcrossRows<Stored> others = usual.others();
      const auto statistics = scaled(all, first, others, x_rows);
      backward_scaled_rows<Stored, centered>(others, statistics, x_rows, dy_rows, weight,
                                             dtotal_rows, dx_rows, problem.eps);
    }
  }

  __attribute__((noinline)) ScaledStatistics<Stored> scaled(const RowLanes& all, int64_t first,
                                                            const AcrossRows<Stored>& rows,
                                                            RowOf<const Stored> x_rows) const {
    RowStatistics<C> of_rows[W];
    for (int64_t row = 0; row < rows.rows; ++row) of_rows[row] = all[first + row];
    return scaled_statistics_from<Stored, centered>(of_rows, rows, x_rows, problem.eps);
  }

  // Adds the rows that are not ordinary to dweight; dbias has them already.
  __attribute__((noinline)) void add_scaled_rows(const RowLanes& all, int64_t count, int64_t outer,
                                                 int64_t inner, const PartialSums<C>& sums) const {
    for (int64_t first = 0; first < count; first += W) {
      const AcrossRows<Stored> rows(cols, std::min(W, count - first),
                                    [&](int64_t row) { return !all.is_ordinary(first + row); });
      const RowOf<const Stored> x_rows = x(outer, inner + first),
                                dy_rows = dy(outer, inner + first);
      if (rows.count_wanted() == 0) continue;
      const auto normalizer = scaled(all, first, rows, x_rows).normalizer();
      const Vector<C> zero = {};
      rows.each([&](const auto& at, int) {
        const Vector<C> xhat = normalizer.template normalized<centered>(at.read(x_rows));
        const Vector<C> term = at.read(dy_rows) * xhat;
        const LaneTotal<C> total(rows.wanted ? term : zero);
        add_compensated(sums.dweight_high[at.place()], sums.dweight_low[at.place()],
                        static_cast<C>(total.sum()));
      });
    }
  }
};

template <class Stored, bool centered>
void backward_columns(const BackwardTask& task, Wanted wanted, int64_t begin, int64_t end) {
  using C = Compute<Stored>;
  const ColumnsBackward<Stored, centered> columns{task, wanted};
  for (int64_t block = begin; block < end; ++block) {
    const PartialSums<C> sums(task, block);
    if (wanted != Wanted::nothing) sums.clear(0, columns.cols);
    const int64_t last = std::min(task.units, (block + 1) * task.units_per_block);
    for (int64_t unit = block * task.units_per_block; unit < last; ++unit) {
      if (task.around) task.around->before(unit, 1);
      for_each_tile(task.job->problem.shape, unit, unit + 1,
                    [&](int64_t outer, int64_t inner, int64_t rows) {
                      for_each_strip<C>(rows, [&](auto strip, int64_t row) {
                        columns.strip(strip, outer, inner + row, sums);
                      });
                    });
      if (task.around) task.around->after();
    }
  }
  if (task.stream) finish_streaming();
}
