// Rows that are split over processes, each of which has a part of every row: one step over these,
// with the arithmetic of scaled rows, so that no step needs to know which rows are ordinary. In RMS
// norm the mean is 0.
#pragma once

// The numbers of `count` rows. Cold: one small copy serves rows of any layout.
struct NumbersOfRows {
  const SplitRows& job;
  int64_t place, count;

  double& operator()(int64_t k, int64_t row) const {
    return job.numbers[k * job.stride + place + row];
  }
  double statistic(int64_t k, int64_t row) const {
    return job.statistics[k * job.stride + place + row];
  }

  template <class Stored>
  __attribute__((cold, noinline)) void put_moments(
      const ScaledStatistics<Stored>& statistics) const {
    constexpr bool is_double = std::is_same<Stored, double>::value;
    for (int64_t row = 0; row < count; ++row) {
      const auto rstd = static_cast<double>(statistics.rstd[row]);
      const double deviation = rstd == 0 ? 0 : times_power(1 / rstd, statistics.exponent[row]);
      (*this)(0, row) = std::min(deviation, DBL_MAX);  // rounded up, it may be infinite
      if (!job.problem.centered) continue;
      const auto mean = static_cast<double>(statistics.unscaled[row].mean);
      const auto residual = static_cast<double>(statistics.unscaled[row].residual);
      (*this)(1, row) = is_double ? mean : mean + residual;
      if (is_double) (*this)(2, row) = residual;
    }
  }

  // The statistics of whole rows, in the middle of the compute type's range.
  template <class Stored>
  __attribute__((cold, noinline)) void take_statistics(ScaledStatistics<Stored>& to) const {
    using C = Compute<Stored>;
    for (int64_t row = 0; row < count; ++row) {
      const double rstd = statistic(0, row);
      // Brings rstd near 1, unless the mean would leave the range: beside it, a row may be constant.
      constexpr int most_of_mean = sizeof(C) == sizeof(float) ? 100 : 500;
      const int power = static_cast<int>(statistic(3, row));
      const int of_rstd = std::isfinite(rstd) && rstd != 0 ? -exponent_of(rstd) : 0;
      const int of_mean = exponent_of(statistic(1, row)) - most_of_mean;
      to.exponent[row] = scale_exponent<C>(power + std::max(of_rstd, of_mean));
      const int more = to.exponent[row] - power;
      const double mean = times_power(statistic(1, row), -more);
      to.scale[row] = power_of_two<C>(-to.exponent[row]);
      to.mean[row] = static_cast<C>(mean);
      to.residual[row] = static_cast<C>((mean - static_cast<double>(to.mean[row])) +
                                        times_power(statistic(2, row), -more));
      to.rstd[row] = static_cast<C>(times_power(rstd, more));
    }
  }

  template <class C>
  __attribute__((cold, noinline)) void put_sums(const ScaledSums<C>& sums, const int* a,
                                                const int* b) const {
    for (int64_t row = 0; row < count; ++row) {
      const int exponent = -a[row] - b[row];
      (*this)(0, row) = times_power(sums.g_xhat[row], exponent);
      (*this)(1, row) = sums.squares_beyond[row];
      if (job.problem.centered) (*this)(2, row) = times_power(sums.g[row], exponent);
    }
  }

  template <class C>
  __attribute__((cold, noinline)) void take_means(const C* rstd, const int* a, const int* b,
                                                  C* mean_g, C* slope) const {
    for (int64_t row = 0; row < count; ++row) {
      const int exponent = a[row] + b[row];
      slope[row] =
          static_cast<C>(static_cast<double>(rstd[row]) * times_power((*this)(0, row), exponent));
      mean_g[row] = 0;
      if (job.problem.centered)
        mean_g[row] = static_cast<C>(times_power((*this)(1, row), exponent));
    }
  }
};

// One contiguous row, or neighboring strided ones, one in each lane.
template <class Stored, class Rows>
void step_over_rows(const SplitRowsTask& task, const Rows& rows, int64_t outer, int64_t inner,
                    int64_t place) {
  using C = Compute<Stored>;
  const SplitRows& job = *task.job;
  const auto row_of = [&](const Array& array) -> RowOf<Stored> {
    if (!array.data) return {nullptr, 0};
    const int64_t offset = offset_of(job.problem.shape, array.strides, outer) + inner;
    return {static_cast<Stored*>(array.data) + offset, array.col_stride};
  };
  const auto read = [&](const Array& array) -> RowOf<const Stored> {
    const RowOf<Stored> row = row_of(array);
    return {row.data, row.stride};
  };
  const NumbersOfRows numbers = {job, place, rows.count()};
  const RowOf<const Stored> x = read(job.problem.x);
  if (job.step == SplitRows::Step::moments)
    return numbers.put_moments(job.problem.centered ? scaled_statistics<Stored, true>(rows, x, 0)
                                                    : scaled_statistics<Stored, false>(rows, x, 0));
  const auto* const weight = static_cast<const C*>(task.weight);
  const auto* const bias = static_cast<const C*>(task.bias);
  ScaledStatistics<Stored> statistics;
  numbers.take_statistics(statistics);
  statistics.spread(rows);
  if (job.step == SplitRows::Step::norm)
    return write_scaled_norm<Stored, true>(rows, statistics, x, weight, bias, row_of(job.result));
  const ScaledGradient<Stored, true, Rows> gradient{rows, statistics, x, read(job.dy), weight};
  const auto& exponents = gradient.exponents;
  if (job.step == SplitRows::Step::sums)
    return numbers.put_sums(gradient.sum(0), exponents.a, exponents.b);
  alignas(64) C mean_g[lanes<C>], slope[lanes<C>];
  numbers.take_means(statistics.rstd, exponents.a, exponents.b, mean_g, slope);
  rows.spread(mean_g);
  rows.spread(slope);
  gradient.write(mean_g, slope, read(job.dtotal), row_of(job.result));
}

template <class Stored>
void step_over_units(const SplitRowsTask& task, int64_t begin, int64_t end) {
  constexpr int64_t W = lanes<Compute<Stored>>;
  const Problem& problem = task.job->problem;
  const Shape& shape = problem.shape;
  const int64_t tiles = shape.inner == 1 ? 1 : (shape.inner + kTileRows - 1) / kTileRows;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t outer = unit / tiles, first = unit % tiles * kTileRows;
    const int64_t place = offset_of(shape, problem.statistics.strides, outer);
    if (shape.inner == 1) {
      const AlongRow<Stored> row = {shape.cols};
      step_over_rows<Stored>(task, row, outer, 0, place);
      continue;
    }
    const int64_t last = std::min(shape.inner, first + kTileRows);
    for (int64_t inner = first; inner < last; inner += W) {
      const AcrossRows<Stored> rows(shape.cols, std::min(W, last - inner),
                                    [](int64_t) { return true; });
      step_over_rows<Stored>(task, rows, outer, inner, place + inner);
    }
  }
}
