#include "operator_call.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "memory.h"
#include "operator_arguments.h"

namespace layernorm::torch {
namespace {

void fill(const Tensor& tensor, double value) {
  const int64_t one = 1, count = tensor.elements();
  if (count == 0) return;
  const Tensor number = empty_contiguous(1, &one, DataType::float64);
  *static_cast<double*>(number.write()) = value;
  tensor.copy_from(number);
}

void fill_zero(const Tensor& tensor, DataType type) {
  std::memset(tensor.write(), 0, static_cast<size_t>(tensor.elements() * size_of(type)));
}

void run(Status status) {
  check(status == Status::ok,
        "layernorm: out of memory: give x fewer columns, or the process more");
}

}  // namespace

void Call::take_types() {
  DataType weight_type, bias_type;
  check(x.is_plain() && x.data_type(&problem.type),
        "layernorm: x needs to be a strided CPU tensor of float16, bfloat16, float32 or float64: "
        "call it with x.float()");
  weight_type = bias_type = problem.type;
  check_parameter("weight", weight, &weight_type);
  check_parameter("bias", bias, &bias_type);
  if (!weight) weight_type = bias_type;
  if (!bias) bias_type = weight_type;
  check(weight_type == bias_type,
        "mixed dtype (CPU): weight and bias have different types: pass bias.to(weight.dtype)");
  problem.parameter_type = weight_type;
  order = choose_order(axes, x.sizes(), x.strides());
  problem.shape = order.shape;
}

Tensor Call::empty_parameter() const {
  int64_t sizes[kMostAxes];
  const int64_t count = normalized_sizes(sizes);
  return empty_contiguous(count, sizes, problem.parameter_type);
}

Tensor Call::empty_as_x(bool contiguous) const {
  const int64_t *sizes = x.sizes(), *strides = x.strides();
  int64_t contiguous_ones[kMostAxes];
  contiguous_strides(x.axes(), sizes, contiguous_ones);
  if (contiguous || is_empty() || !is_dense(x.axes(), sizes, strides)) strides = contiguous_ones;
  const int64_t bytes = x.elements() * size_of(problem.type);
  return is_large(bytes) ? large_empty(x.axes(), sizes, strides, problem.type, bytes)
                         : empty(x.axes(), sizes, strides, problem.type);
}

Tensor Call::empty_statistics(DataType type) const {
  return empty_contiguous(axes.count, statistics_sizes_, type);
}

SavedRows Call::saved_rows(bool for_aten) {
  for (int64_t axis = 0; axis < axes.count; ++axis)
    statistics_sizes_[axis] = axes.normalized[axis] ? 1 : x.sizes()[axis];
  const bool in_16_bits = size_of(problem.type) == 2 && problem.parameter_type == problem.type;
  const DataType shown = for_aten && in_16_bits ? problem.type : compute();
  return {axes.count, statistics_sizes_, rows(), shown, compute()};
}

Tensor Call::statistics(Tensor given) const {
  if (!given) return given;
  check(given.is_plain() && given.elements() == rows(),
        "layernorm: the statistics are not those of this x");
  return contiguous(std::move(given), compute());
}

void Call::check_parameter(const char* name, const Tensor& parameter, DataType* type) const {
  if (!parameter) return;
  const bool fits =
      parameter.is_plain() && parameter.data_type(type) &&
      (*type == problem.type || (size_of(problem.type) == 2 && *type == DataType::float32));
  check(fits, (std::string("mixed dtype (CPU): ") + name +
               " needs the type of x, or float32 beside a 16-bit x: pass " + name + ".to(x.dtype)")
                  .c_str());
  int64_t normalized[kMostAxes];
  const int64_t count = normalized_sizes(normalized);
  check(parameter.axes() == count && std::equal(normalized, normalized + count, parameter.sizes()),
        ("Expected " + std::string(name) + " to be of same shape as normalized_shape, but got " +
         name + " of shape " + words(parameter.sizes(), parameter.axes()) +
         " and normalized_shape = " + words(normalized, count))
            .c_str());
}

int64_t Call::normalized_sizes(int64_t* sizes) const {
  int64_t count = 0;
  for (int64_t axis = 0; axis < axes.count; ++axis)
    if (axes.normalized[axis]) sizes[count++] = x.sizes()[axis];
  return count;
}

ForwardResults run_forward(Call& call, bool for_aten) {
  call.take_types();
  Problem& problem = call.problem;
  ForwardResults results;
  results.y = call.empty_as_x(for_aten);
  const SavedRows saved = call.saved_rows(for_aten);
  if (for_aten && !call.is_empty()) {
    results.mean = empty_mean(saved, problem.eps, &problem.statistics);
    results.rstd = empty_contiguous(saved.axes, saved.sizes, saved.shown);
  } else {
    results.rstd = call.empty_statistics(saved.shown);
    problem.statistics.rstd = results.rstd.write();
    if (problem.centered) {
      results.mean = call.empty_statistics(saved.shown);
      results.residual = call.empty_statistics(saved.shown);
      problem.statistics.mean = results.mean.write();
      problem.statistics.residual = results.residual.write();
    }
  }
  if (call.is_empty()) {  // as PyTorch has them where there is nothing to take the mean of
    fill(results.rstd, NAN);
    if (problem.centered) fill(results.mean, 0);
    if (problem.centered) fill(results.residual, 0);
    return results;
  }
  const Tensor weight = contiguous(std::move(call.weight), problem.parameter_type);
  const Tensor bias = contiguous(std::move(call.bias), problem.parameter_type);
  if (weight) problem.weight = weight.read();
  const Walked x = Walked::to_read(call.x, call.order, problem.type);
  const Walked y = Walked::to_write(results.y, call.order, problem.type);
  problem.x = x.array();
  Forward job = {problem, bias ? bias.read() : nullptr, y.array()};
  run(forward(job, parallel_for()));
  y.flush();
  if (for_aten) {
    show(saved, problem.statistics.mean, results.mean);
    show(saved, problem.statistics.rstd, results.rstd);
  }
  return results;
}

BackwardResults run_backward(Call& call, const Tensor& dy, Tensor (&saved)[3],
                             const bool (&need)[3], bool for_aten) {
  call.take_types();
  Problem& problem = call.problem;
  DataType dy_type;
  check(
      dy.is_plain() && dy.data_type(&dy_type) && dy_type == problem.type && dy.has_sizes_of(call.x),
      "layernorm: dy needs x's sizes and type");
  BackwardResults results;
  if (need[0]) results.dx = call.empty_as_x(for_aten);
  if (need[1]) results.dweight = call.empty_parameter();
  if (need[2]) results.dbias = call.empty_parameter();
  if (call.is_empty()) {
    if (need[1]) fill_zero(results.dweight, problem.parameter_type);
    if (need[2]) fill_zero(results.dbias, problem.parameter_type);
    return results;
  }
  const int64_t rows = call.rows();
  if (!for_aten ||
      !find_behind(saved[0], saved[1], rows, call.compute(), &problem.statistics, &problem.eps)) {
    for (Tensor& each : saved) each = call.statistics(std::move(each));
    // The kernels only read statistics in the backward.
    const auto data = [](const Tensor& given) {
      return given ? const_cast<void*>(given.read()) : nullptr;
    };
    problem.statistics = {data(saved[0]), data(saved[1]), data(saved[2])};
  }
  const Tensor weight = contiguous(std::move(call.weight), problem.parameter_type);
  if (weight) problem.weight = weight.read();
  const Walked x = Walked::to_read(call.x, call.order, problem.type);
  const Walked walked_dy = Walked::to_read(dy, call.order, problem.type);
  Walked dx;
  if (need[0]) dx = Walked::to_write(results.dx, call.order, problem.type);
  problem.x = x.array();
  Backward job = {};
  job.problem = problem;
  job.dy = walked_dy.array();
  job.dx = dx.array();
  if (need[1]) job.dweight = results.dweight.write();
  if (need[2]) job.dbias = results.dbias.write();
  run(backward(job, parallel_for()));
  dx.flush();
  return results;
}

}  // namespace layernorm::torch
