// Backward over contiguous rows, a batch at a time: one pass over the columns computes the two sums
// of each row and adds to the parameters' gradients; a second pass, from the cache, writes dx.
#pragma once

// The sums along R rows (for dx) and across them (for dweight and dbias).
template <class Stored, bool centered, bool has_weight, Wanted wanted, int64_t R>
struct GroupSums {
  using C = Compute<Stored>;
  static constexpr int64_t W = lanes<C>;

  Normalizer<C> normalizer[R];
  const Stored *x[R], *dy[R];
  // Distance in elements to the row of x to prefetch; 0: prefetch neither it nor dx.
  int64_t x_ahead;
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

  template <bool prefetched>
  LAYERNORM_INLINE void pack(int64_t col, const C* weight, Vector<C>* sum_g, Vector<C>* sum_g_xhat,
                             C* dweight_low, C* dbias_low) const {
    Pack<Stored> w = {}, dweight = {}, dbias = {};
    if constexpr (has_weight) w = load_ordered<Stored>(weight + col);
    LAYERNORM_UNROLL
    for (int64_t r = 0; r < R; ++r) {
      if constexpr (prefetched) {
        prefetch_pack(x[r] + x_ahead + col);
        if (dx[0]) prefetch_pack_for_writing(dx[r] + col);
      }
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

  // Adds columns [begin, end) to the totals; from column `first` on, the totals begin anew.
  LAYERNORM_INLINE void sum(int64_t first, int64_t begin, int64_t end, const C* weight,
                            C* dweight_low, C* dbias_low) {
    constexpr int64_t size = pack_size<Stored>;
    for (int64_t col = begin; col < end;) {
      const bool begins = col == first;
      const int64_t block_end = std::min(end, col + kFlush * W);
      // Local arrays, not members, so that the compiler keeps them in registers.
      Vector<C> sum_g[R] = {}, sum_g_xhat[R] = {};
      if (R > 1 && x_ahead != 0)
        for (; col + size <= block_end; col += size)
          pack<R != 1>(col, weight, sum_g, sum_g_xhat, dweight_low, dbias_low);
      for (; col + size <= block_end; col += size)
        pack<false>(col, weight, sum_g, sum_g_xhat, dweight_low, dbias_low);
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

template <class Stored, bool centered, bool has_weight, Wanted wanted>
struct RowsBackward {
  using C = Compute<Stored>;

  const BackwardTask& task;
  const Problem& problem = task.job->problem;
  const int64_t cols = problem.shape.cols;
  const bool wants_dx = task.job->dx.data != nullptr;
  RowGradients<Stored, centered, has_weight> gradients = {task};
  BatchTotals<C> totals;  // of wide rows, between two blocks of columns
  bool cleared;           // the block's partial sums; otherwise its first rows do it

  explicit RowsBackward(const BackwardTask& of_task) : task(of_task) {}

  RowStatistics<C> saved(int64_t row) const {
    const Statistics& from = problem.statistics;
    const int64_t at = gradients.statistics_offset(row);
    RowStatistics<C> result = {0, 0, static_cast<const C*>(from.rstd)[at], true};
    if constexpr (centered) {
      result.mean = static_cast<const C*>(from.mean)[at];
      result.residual = from.residual ? static_cast<const C*>(from.residual)[at]
                                      : residual_of(result.mean, gradients.x(row), gradients.parts);
    }
    result.ordinary = is_ordinary_rstd(result.rstd);
    return result;
  }

  __attribute__((noinline)) void scaled_row(const RowStatistics<C>& row_statistics, int64_t row,
                                            const PartialSums<C>& sums) const {
    const ScaledStatistics<Stored> statistics = gradients.scaled(row_statistics, row);
    if constexpr (wanted != Wanted::nothing)
      accumulate_scaled_row<Stored, centered>(statistics, {gradients.x(row), 1},
                                              {gradients.dy(row), 1}, sums, cols, wanted);
    if (wants_dx) gradients.write_scaled(statistics, row);
  }

  // The sums over columns [first, last): of whole rows into `means`, of parts into `totals`.
  template <int64_t R>
  __attribute__((noinline)) void sum_part(const RowStatistics<C>* rows, int64_t row, int64_t count,
                                          const PartialSums<C>& sums, int64_t first, int64_t last,
                                          BatchTotals<C>& totals, RowMeans<C>* means) const {
    const bool prefetch_dx = task.prefetch && !task.stream && wants_dx;
    for (int64_t begin = first; begin < last; begin += kBlockCols) {
      const int64_t end = std::min(last, begin + kBlockCols);
      if constexpr (wanted != Wanted::nothing)
        if (!cleared) sums.clear(begin, end);
      for (int64_t at = 0; at < count; at += R) {
        GroupSums<Stored, centered, has_weight, wanted, R> group;
        group.x_ahead = gradients.x_offset.ahead();
        for (int64_t r = 0; r < R; ++r) {
          group.normalizer[r] = Normalizer<C>(rows[at + r]);
          group.x[r] = gradients.x(row + at + r);
          group.dy[r] = gradients.dy(row + at + r);
          group.dx[r] = prefetch_dx ? gradients.dx(row + at + r) : nullptr;
          if (begin == first) continue;
          group.total_g[r] = totals.g[at + r];
          group.total_g_xhat[r] = totals.g_xhat[at + r];
        }
        group.sum(first, begin, end, gradients.weight, sums.dweight_low, sums.dbias_low);
        for (int64_t r = 0; r < R; ++r) {
          if (means && end == last) {
            means->put(at + r, group.total_g[r], group.total_g_xhat[r]);
          } else {
            totals.g[at + r] = group.total_g[r];
            totals.g_xhat[at + r] = group.total_g_xhat[r];
          }
        }
      }
    }
  }

  template <int64_t R>
  __attribute__((noinline)) void sum_parts(const RowStatistics<C>* rows, int64_t row, int64_t count,
                                           const PartialSums<C>& sums, RowMeans<C>& means) const {
    BatchTotals<C> of_part[kMostParts];
    gradients.parts.each([&](int64_t part, int64_t begin, int64_t end) {
      sum_part<R>(rows, row, count, sums, begin, end, of_part[part], nullptr);
    });
    means.put_sums(of_part, gradients.parts.count, count);
  }

  template <int64_t R>
  void batch(const RowStatistics<C>* rows, int64_t row, int64_t count, const PartialSums<C>& sums) {
    RowMeans<C> means;
    if (gradients.parts.count == 1)
      sum_part<R>(rows, row, count, sums, 0, cols, totals, &means);
    else
      sum_parts<R>(rows, row, count, sums, means);
    cleared = true;
    if (wants_dx) gradients.write(rows, means, row, count);
  }

  void rows(int64_t row, int64_t count, int64_t last, const PartialSums<C>& sums) {
    gradients.move_to(row, count, last);
    RowStatistics<C> rows[kMostBatchRows];
    bool ordinary = count % kGroupRows == 0;
    for (int64_t r = 0; r < count; ++r) {
      rows[r] = saved(row + r);
      ordinary = ordinary && rows[r].ordinary;
    }
    if (ordinary) return batch<kGroupRows>(rows, row, count, sums);
    clear(sums);
    for (int64_t r = 0; r < count; ++r) {
      if (rows[r].ordinary)
        batch<1>(rows + r, row + r, 1, sums);
      else
        scaled_row(rows[r], row + r, sums);
    }
  }

  void clear(const PartialSums<C>& sums) {
    if constexpr (wanted != Wanted::nothing)
      if (!cleared) sums.clear(0, cols);
    cleared = true;
  }

  void block(int64_t index) {
    const PartialSums<C> sums(task, index);
    cleared = false;
    const int64_t begin = index * task.units_per_block, batch_rows = gradients.batch_rows;
    const int64_t end = std::min(task.units, begin + task.units_per_block);
    for (int64_t row = begin; row < end; row += batch_rows) {
      const int64_t count = std::min(batch_rows, end - row);
      if (task.around) task.around->before(row, count);
      rows(row, count, end, sums);
      if (task.around) task.around->after();
      const bool full = (row - begin) % kFoldRows == kFoldRows - batch_rows;
      if (!sums.have_low() || (!full && row + batch_rows < end)) continue;
      if constexpr (wanted != Wanted::nothing)
        gradients.parts.each([&](int64_t, int64_t from, int64_t to) {
          fold(sums.dweight_high, sums.dweight_low, from, to);
          if constexpr (wanted == Wanted::both) fold(sums.dbias_high, sums.dbias_low, from, to);
        });
    }
    clear(sums);  // where there are no rows
  }
};

template <class Stored, bool centered, bool has_weight, Wanted wanted>
void backward_rows(const BackwardTask& task, int64_t begin, int64_t end) {
  RowsBackward<Stored, centered, has_weight, wanted> rows{task};
  for (int64_t block = begin; block < end; ++block) rows.block(block);
  if (task.stream) finish_streaming();
}
