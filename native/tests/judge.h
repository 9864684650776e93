// Judges one call of the forward and of the backward by the definition in reference.h.
#pragma once

#include "check.h"
#include "distance.h"
#include "layer.h"
#include "reference.h"

namespace layernorm::test {

// The largest errors of this program, in ulp. Printed, so that too loose a bound shows.
struct Worst {
  Real y = 0, dx = 0, parameter = 0;
};
inline Worst worst_of_type[4];

class Judge {
 public:
  Judge(const Case& given, const Inputs& inputs) : case_(given), inputs_(inputs) {
    Row x(static_cast<size_t>(given.shape.cols));
    for (int64_t row = 0; row < given.rows(); ++row) {
      for (int64_t col = 0; col < given.shape.cols; ++col)
        x[static_cast<size_t>(col)] = inputs.x.get(row, col);
      rows_.push_back(normalize(x, given.centered, static_cast<Real>(given.eps)));
    }
  }

  void forward(const Outputs& outputs) const {
    const DataType type = case_.type;
    Worst& worst = worst_of_type[static_cast<int>(type)];
    for (int64_t row = 0; row < case_.rows(); ++row) {
      const NormalizedRow& exact = rows_[static_cast<size_t>(row)];
      for (int64_t col = 0; col < case_.shape.cols; ++col) {
        const auto at = static_cast<size_t>(col);
        const Real w = weight(col), b = bias(col), y = outputs.y.get(row, col);
        const Real expected = exact.xhat[at] * w + b;
        Real error;
        if (exact.constant) {
          error = distance(y, rounded(b, type), type) == 0 ? 0 : largest(type);
        } else {
          const Real scale =
              std::max({std::fabs(w) * exact.scale(at), std::fabs(b), std::fabs(expected)});
          error = distance(y, expected, type) / ulp(scale, type);
        }
        worst.y = std::max(worst.y, error);
        CHECK(error <= bounds_of(type).y,
              "y of row %lld, column %lld: %.20Lg, expected %.20Lg, "
              "%.4Lg ulp: %s",
              static_cast<long long>(row), static_cast<long long>(col), y, expected, error,
              case_.text().c_str());
      }
      statistics(exact, outputs, row);
    }
    CHECK(outputs.y.gaps_are_poison(), "forward wrote between the rows: %s", case_.text().c_str());
  }

  void backward(const Outputs& outputs) const {
    const auto cols = static_cast<size_t>(case_.shape.cols);
    Row dweight(cols), dweight_scale(cols), dbias(cols), dbias_scale(cols), dy(cols), g(cols);
    for (int64_t row = 0; row < case_.rows(); ++row) {
      const NormalizedRow& exact = rows_[static_cast<size_t>(row)];
      for (size_t col = 0; col < cols; ++col) {
        dy[col] = inputs_.dy.get(row, static_cast<int64_t>(col));
        g[col] = dy[col] * weight(static_cast<int64_t>(col));
        dweight[col] += dy[col] * exact.xhat[col];
        dweight_scale[col] += std::fabs(dy[col]) * exact.scale(col);
        dbias[col] += dy[col];
        dbias_scale[col] += std::fabs(dy[col]);
      }
      if (case_.wants_dx) judge_dx(exact, g, outputs, row);
    }
    if (case_.wants_dweight) judge_parameter("dweight", outputs.dweight, dweight, dweight_scale);
    if (case_.wants_dbias) judge_parameter("dbias", outputs.dbias, dbias, dbias_scale);
    CHECK(!case_.wants_dx || outputs.dx.gaps_are_poison(), "backward wrote between the rows: %s",
          case_.text().c_str());
  }

 private:
  Real weight(int64_t col) const {
    if (!case_.has_weight) return 1;
    return inputs_.weight.get(0, col) + (case_.zero_centered_weight ? 1 : 0);
  }
  Real bias(int64_t col) const { return case_.has_bias ? inputs_.bias.get(0, col) : 0; }

  // mean + residual must have 20 bits more than the compute type, or as many as matter beside the
  // deviation; rstd must be as exact as dx.
  void statistics(const NormalizedRow& exact, const Outputs& outputs, int64_t row) const {
    const DataType type = case_.compute();
    const int precision = format_of(type).precision;
    const auto shown = static_cast<long long>(row);
    if (case_.saves_rstd) {
      const Real rstd = outputs.rstd.get(0, row);
      if (!exact.is_finite())
        CHECK(std::isnan(rstd), "rstd of row %lld: %Lg, expected NaN: %s", shown, rstd,
              case_.text().c_str());
      else if (std::isfinite(exact.rstd) && exact.rstd < largest(type))
        CHECK(distance(rstd, exact.rstd, type) <=
                  bounds_of(type).dx * std::ldexp(exact.rstd, 1 - precision),
              "rstd of row %lld: %.20Lg, expected %.20Lg: %s", shown, rstd, exact.rstd,
              case_.text().c_str());
    }
    if (!case_.centered || !case_.saves_mean || !case_.saves_residual) return;
    const Real mean = outputs.mean.get(0, row) + outputs.residual.get(0, row);
    const Real allowed = std::ldexp(std::fabs(exact.mean), -std::min(2 * precision - 4, 62)) +
                         std::ldexp(exact.deviation, 3 - precision) + 2 * smallest(type);
    CHECK(exact.is_finite() ? std::fabs(mean - exact.mean) <= allowed : std::isnan(mean),
          "mean + residual of row %lld: %.20Lg, expected %.20Lg: %s", shown, mean, exact.mean,
          case_.text().c_str());
  }

  // A row without a derivative (variance and eps both 0) is not judged.
  void judge_dx(const NormalizedRow& exact, const Row& g, const Outputs& outputs,
                int64_t row) const {
    if (std::isinf(exact.rstd)) return;
    const DataType type = case_.type;
    Worst& worst = worst_of_type[static_cast<int>(type)];
    Real largest_g = 0;
    bool finite = exact.is_finite();
    for (const Real value : g) {
      largest_g = std::max(largest_g, std::fabs(value));
      finite = finite && std::isfinite(value);
    }
    const Row expected = gradient(exact, g, case_.centered);
    for (size_t col = 0; col < g.size(); ++col) {
      const Real dx = outputs.dx.get(row, static_cast<int64_t>(col));
      if (!finite) {
        CHECK(std::isnan(dx), "dx of row %lld, column %zu: %Lg, expected NaN: %s",
              static_cast<long long>(row), col, dx, case_.text().c_str());
        continue;
      }
      const Real scale = exact.rstd * exact.scale(col) * largest_g;
      const Real apart = type == case_.compute()
                             ? distance(dx, expected[col], type)
                             : distance_before_rounding(dx, expected[col], type);
      const Real error = apart / ulp(scale, case_.compute());
      worst.dx = std::max(worst.dx, error);
      CHECK(error <= bounds_of(type).dx,
            "dx of row %lld, column %zu: %.20Lg, expected %.20Lg, %.4Lg ulp: %s",
            static_cast<long long>(row), col, dx, expected[col], error, case_.text().c_str());
    }
  }

  void judge_parameter(const char* name, const Tensor& result, const Row& expected,
                       const Row& scale) const {
    Worst& worst = worst_of_type[static_cast<int>(case_.type)];
    for (size_t col = 0; col < expected.size(); ++col) {
      const Real value = result.get(0, static_cast<int64_t>(col));
      const Real error = distance_before_rounding(value, expected[col], result.type()) /
                         ulp(scale[col], case_.compute());
      worst.parameter = std::max(worst.parameter, error);
      CHECK(error <= bounds_of(case_.type).parameter,
            "%s of column %zu: %.20Lg, expected %.20Lg, %.4Lg ulp: %s", name, col, value,
            expected[col], error, case_.text().c_str());
    }
  }

  const Case& case_;
  const Inputs& inputs_;
  std::vector<NormalizedRow> rows_;
};

// Forward and backward, both judged.
inline void run_and_judge(const Case& given, const Inputs& inputs,
                          const Threads& threads = kAlone) {
  if (given.type == DataType::float64 && !kCanJudgeFloat64) return;
  Random random(given.seed + 2);
  const Tensor x = inputs.x.copy(random), dy = inputs.dy.copy(random);
  Outputs outputs = make_outputs(given, inputs);
  const Judge judge(given, inputs);
  CHECK(run_forward(given, inputs, outputs, threads) == Status::ok, "forward: out of memory");
  judge.forward(outputs);
  if (given.saves_rstd && (given.saves_mean || !given.centered)) {
    CHECK(run_backward(given, inputs, outputs, threads) == Status::ok, "backward: out of memory");
    judge.backward(outputs);
  }
  CHECK(inputs.x.buffer().same_bytes(x.buffer()) && inputs.dy.buffer().same_bytes(dy.buffer()),
        "an input has changed: %s", given.text().c_str());
}

inline void run_and_judge(const Case& given, const Threads& threads = kAlone) {
  run_and_judge(given, make_inputs(given), threads);
}

inline void print_worst() {
  for (int type = 0; type < 4; ++type)
    std::printf("%9s: y %.3Lf, dx %.3Lf, parameters %.3Lf ulp at most\n",
                format_of(static_cast<DataType>(type)).name, worst_of_type[type].y,
                worst_of_type[type].dx, worst_of_type[type].parameter);
}

}  // namespace layernorm::test
