// One call of the forward and of the backward: the case, its inputs and its outputs.
#pragma once

#include <string>

#include "check.h"
#include "tensor.h"
#include "values.h"

namespace layernorm::test {

struct Case {
  Shape shape = {3, 5, 1};
  DataType type = DataType::float32;
  DataType parameter_type = DataType::float32;
  bool centered = true;
  bool has_weight = true, zero_centered_weight = false, has_bias = true;
  double eps = 1e-5;
  Values x_values = Values::ordinary, dy_values = Values::off_zero;
  Layout x_layout = Layout::dense, dy_layout = Layout::dense, output_layout = Layout::dense;

  // What the calls write, and where.
  bool in_place = false;  // y in x, and dx in dy or in x
  bool dx_in_x = false;
  bool wants_dx = true, wants_dweight = true, wants_dbias = true;
  bool saves_mean = true, saves_rstd = true, saves_residual = true;
  bool gives_residual = true;  // to the backward

  uint64_t seed = 0;

  int64_t rows() const { return shape.outer * shape.inner; }
  DataType compute() const { return compute_type(type); }

  std::string text() const {
    char result[320];
    std::snprintf(
        result, sizeof(result),
        "%s %s (%lld, %lld, %lld), parameters %s:%s%s%s, eps %g, x %s %d, dy %s %d, outputs %d%s%s,"
        " wants%s%s%s%s, seed %llu",
        centered ? "layer norm" : "RMS norm", format_of(type).name,
        static_cast<long long>(shape.outer), static_cast<long long>(shape.cols),
        static_cast<long long>(shape.inner), format_of(parameter_type).name,
        has_weight ? " weight" : "", zero_centered_weight ? " + 1" : "", has_bias ? " bias" : "",
        eps, name_of(x_values), static_cast<int>(x_layout), name_of(dy_values),
        static_cast<int>(dy_layout), static_cast<int>(output_layout), in_place ? " in place" : "",
        in_place && dx_in_x ? " of x" : "", wants_dx ? " dx" : "", wants_dweight ? " dweight" : "",
        wants_dbias ? " dbias" : "", gives_residual ? "" : ", no residual",
        static_cast<unsigned long long>(seed));
    return result;
  }
};

struct Inputs {
  Tensor x, dy, weight, bias;
};

struct Outputs {
  Tensor y, mean, rstd, residual;
  Tensor dx, dweight, dbias;
};

inline void fill(Tensor& tensor, Values values, Random& random) {
  std::vector<Real> numbers(static_cast<size_t>(tensor.cols()));
  for (int64_t row = 0; row < tensor.rows(); ++row) {
    fill_row(values, tensor.type(), row, random, numbers);
    for (int64_t col = 0; col < tensor.cols(); ++col)
      tensor.set(row, col, numbers[static_cast<size_t>(col)]);
  }
}

inline Inputs make_inputs(const Case& given) {
  Random random(given.seed);
  const Shape parameter = {1, given.shape.cols, 1};
  Inputs inputs;
  inputs.x = Tensor(given.type, given.shape, given.x_layout, random);
  inputs.dy = Tensor(given.type, given.shape, given.dy_layout, random);
  fill(inputs.x, given.x_values, random);
  fill(inputs.dy, given.dy_values, random);
  if (given.has_weight) {
    inputs.weight = Tensor(given.parameter_type, parameter, Layout::dense, random);
    const Real center = given.zero_centered_weight ? 0 : 1;
    for (int64_t col = 0; col < given.shape.cols; ++col)
      inputs.weight.set(0, col, center + 0.5L * random.normal());
  }
  if (given.has_bias) {
    inputs.bias = Tensor(given.parameter_type, parameter, Layout::dense, random);
    fill(inputs.bias, Values::ordinary, random);
  }
  return inputs;
}

// Poisoned, except in place, where they start as copies of the inputs.
inline Outputs make_outputs(const Case& given, const Inputs& inputs) {
  Random random(given.seed + 1);
  const Shape parameter = {1, given.shape.cols, 1}, statistic = {1, given.rows(), 1};
  const DataType compute = given.compute();
  Outputs outputs;
  if (given.in_place) {
    outputs.y = inputs.x.copy(random);
    outputs.dx = (given.dx_in_x ? inputs.x : inputs.dy).copy(random);
  } else {
    outputs.y = Tensor(given.type, given.shape, given.output_layout, random);
    if (given.wants_dx) outputs.dx = Tensor(given.type, given.shape, given.output_layout, random);
  }
  if (given.saves_mean) outputs.mean = Tensor(compute, statistic, Layout::dense, random);
  if (given.saves_rstd) outputs.rstd = Tensor(compute, statistic, Layout::dense, random);
  if (given.saves_residual) outputs.residual = Tensor(compute, statistic, Layout::dense, random);
  if (given.wants_dweight)
    outputs.dweight = Tensor(given.parameter_type, parameter, Layout::dense, random);
  if (given.wants_dbias)
    outputs.dbias = Tensor(given.parameter_type, parameter, Layout::dense, random);
  return outputs;
}

inline Problem problem_of(const Case& given, const Inputs& inputs, const Tensor& x,
                          const Statistics& statistics) {
  const void* weight = given.has_weight ? inputs.weight.data() : nullptr;
  return {given.shape,
          given.type,
          given.parameter_type,
          given.centered,
          given.zero_centered_weight,
          given.eps,
          x.array(),
          weight,
          statistics,
          {}};
}

constexpr Threads kAlone = {1, nullptr, nullptr};

inline Status run_forward(const Case& given, const Inputs& inputs, Outputs& outputs,
                          const Threads& threads = kAlone) {
  const Statistics statistics = {given.saves_mean ? outputs.mean.data() : nullptr,
                                 given.saves_rstd ? outputs.rstd.data() : nullptr,
                                 given.saves_residual ? outputs.residual.data() : nullptr,
                                 {given.shape.inner}};
  const Tensor& x = given.in_place ? outputs.y : inputs.x;
  const Forward job = {problem_of(given, inputs, x, statistics),
                       given.has_bias ? inputs.bias.data() : nullptr, outputs.y.array()};
  return forward(job, threads);
}

// Call after run_forward: reads its mean and rstd.
inline Status run_backward(const Case& given, const Inputs& inputs, Outputs& outputs,
                           const Threads& threads = kAlone) {
  const bool residual = given.saves_residual && given.gives_residual;
  const Statistics statistics = {given.centered ? outputs.mean.data() : nullptr,
                                 outputs.rstd.data(),
                                 residual ? outputs.residual.data() : nullptr,
                                 {given.shape.inner}};
  const Tensor& x = given.in_place && given.dx_in_x ? outputs.dx : inputs.x;
  const Tensor& dy = given.in_place && !given.dx_in_x ? outputs.dx : inputs.dy;
  Array dx = {nullptr, {0}, 0};
  if (given.wants_dx) dx = outputs.dx.array();
  const Backward job = {problem_of(given, inputs, x, statistics), dy.array(), dx,
                        given.wants_dweight ? outputs.dweight.data() : nullptr,
                        given.wants_dbias ? outputs.dbias.data() : nullptr};
  return backward(job, threads);
}

inline Outputs run(const Case& given, const Inputs& inputs, const Threads& threads = kAlone) {
  Outputs outputs = make_outputs(given, inputs);
  CHECK(run_forward(given, inputs, outputs, threads) == Status::ok, "forward: out of memory");
  CHECK(run_backward(given, inputs, outputs, threads) == Status::ok, "backward: out of memory");
  return outputs;
}

}  // namespace layernorm::test
