#include "operator_call.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "memory.h"
#include "operator_arguments.h"

namespace layernorm::torch {
namespace {

void fill(const Tensor& tensor, double value) {
  if (tensor.view().elements() == 0) return;
  const int64_t one = 1;
  const Tensor number = empty_contiguous(1, &one, DataType::float64);
  *static_cast<double*>(number.data()) = value;
  tensor.copy_from(number);
}

void fill_zero(const Tensor& tensor) {
  std::memset(tensor.data(), 0, static_cast<size_t>(tensor.view().bytes()));
}

struct Placed {
  InOrder* tensor;
  Array& array;
};

// Fills in the arrays, and the problem's shape; copies tensors whose rows are on too many axes.
// Those whose tensor is null are not there. Another one is in order, and contiguous, already.
void place(Call& call, std::initializer_list<Placed> tensors, Order::Placed other = {}) {
  Order::Placed placed[kMostTensors];
  int count = 0;
  if (other.tensor) placed[count++] = other;
  for (const Placed& each : tensors)
    if (each.tensor) placed[count++] = {&each.tensor->ordered(), &each.array};
  if (call.order.place(placed, count, call.problem)) return;
  for (const Placed& each : tensors)
    if (each.tensor) each.tensor->make_contiguous();
  check(call.order.place(placed, count, call.problem),
        "layernorm: weight and bias vary along too many axes of x apart: move the axes");
}

// A tensor of x's sizes, which may be absent.
class Optional {
 public:
  Optional(const Tensor& given, const Order& order, InOrder::Use use) {
    if (given) tensor_.emplace(given, order, use);
  }
  InOrder* get() { return tensor_ ? &*tensor_ : nullptr; }
  void flush() const {
    if (tensor_) tensor_->flush();
  }

 private:
  std::optional<InOrder> tensor_;
};

// A parameter or its gradient, which may be absent, contiguous in this order.
class Parameter {
 public:
  Parameter(const Tensor& given, const Order& order, InOrder::Use use) {
    if (!given) return;
    tensor_.emplace(given, order, use);
    tensor_->make_contiguous();
  }
  void* data() const { return tensor_ ? tensor_->ordered().data : nullptr; }
  void flush() const {
    if (tensor_) tensor_->flush();
  }

 private:
  std::optional<InOrder> tensor_;
};

void check_memory(Status status) {
  check(status == Status::ok,
        "layernorm: out of memory: give x fewer columns, or the process more");
}

}  // namespace

void Call::check_tensors() {
  check(view.is_served,
        "layernorm: x needs to be a strided CPU tensor of float16, bfloat16, float32 or float64: "
        "call it with x.float()");
  problem.type = view.type;
  DataType weight_type = problem.type, bias_type = problem.type;
  check_parameter("weight", weight, &weight_type);
  check_parameter("bias", bias, &bias_type);
  if (!weight) weight_type = bias_type;
  if (!bias) bias_type = weight_type;
  check(weight_type == bias_type,
        "mixed dtype (CPU): weight and bias have different types: pass bias.to(weight.dtype)");
  problem.parameter_type = weight_type;
  check(!weight || !bias || weight.view().has_sizes_of(bias.view()),
        "layernorm: weight and bias have different sizes: expand one to the other's");
  if (addend) check_like_x(addend, "layernorm: residual needs x's sizes and type");
  if (gate) check_like_x(gate, "layernorm: gate needs x's sizes and type");
  order = choose_order(axes, view.sizes, view.strides);
  for (int64_t axis = 0; axis < axes.count; ++axis)
    statistics_sizes_[axis] = axes.normalized[axis] ? 1 : view.sizes[axis];
}

void Call::check_like_x(const Tensor& given, const char* message) const {
  const View of_given = given.view();
  check(of_given.is_served && of_given.type == problem.type && of_given.has_sizes_of(view),
        message);
}

int64_t Call::parameter_sizes(int64_t* sizes) const {
  if (!has_kept_axes_) return axes.normalized_sizes(view.sizes, sizes);
  for (int64_t axis = 0; axis < axes.count; ++axis)
    sizes[axis] = axes.normalized[axis] || axes.varying[axis] ? view.sizes[axis] : 1;
  return axes.count;
}

Tensor Call::empty_parameter() const {
  int64_t sizes[kMostAxes];
  const int64_t count = parameter_sizes(sizes);
  return empty_contiguous(count, sizes, problem.parameter_type);
}

Order Call::parameter_order() const {
  Order result = order;
  int64_t sizes[kMostAxes];
  result.count = parameter_sizes(sizes);
  if (!has_kept_axes_)
    for (int64_t at = 0; at < result.count; ++at) result.axis[at] = at;
  result.apply(sizes, result.sizes);
  return result;
}

Tensor Call::empty_as_x(bool contiguous) const {
  int64_t contiguous_ones[kMostAxes];
  contiguous_strides(view.axes, view.sizes, contiguous_ones);
  const int64_t* strides = view.strides;
  if (contiguous || is_empty() || !is_dense(view.axes, view.sizes, strides))
    strides = contiguous_ones;
  return is_large(view.bytes())
             ? large_empty(view.axes, view.sizes, strides, problem.type, view.bytes())
             : empty(view.axes, view.sizes, strides, problem.type);
}

Tensor Call::empty_statistics(DataType type) const {
  return empty_contiguous(axes.count, statistics_sizes_, type);
}

Tensor Call::empty_numbers(int64_t count) const {
  check(axes.count < kMostAxes, "layernorm: x has more than 63 axes");
  int64_t sizes[kMostAxes] = {count};
  std::copy_n(statistics_sizes_, axes.count, sizes + 1);
  return empty_contiguous(axes.count + 1, sizes, DataType::float64);
}

int64_t Call::numbers(SplitRows::Step step) const {
  if (step == SplitRows::Step::sums) return problem.centered ? 3 : 2;
  return !problem.centered ? 1 : problem.type == DataType::float64 ? 3 : 2;
}

SavedRows Call::saved_rows(bool for_aten) const {
  const bool in_16_bits = size_of(problem.type) == 2 && problem.parameter_type == problem.type;
  const DataType shown = for_aten && in_16_bits ? problem.type : compute();
  return {axes.count, statistics_sizes_, rows(), shown, compute()};
}

Tensor Call::statistics(Tensor given) const {
  if (!given) return given;
  check(given.view().elements() == rows(), "layernorm: the statistics are not those of this x");
  return contiguous(std::move(given), compute());
}

void Call::check_parameter(const char* name, const Tensor& parameter, DataType* type) {
  if (!parameter) return;
  const View given = parameter.view();
  check(given.is_served && accepts_parameter(problem.type, given.type),
        (std::string("mixed dtype (CPU): ") + name +
         " needs the type of x, or float32 beside a 16-bit x: pass " + name + ".to(x.dtype)")
            .c_str());
  int64_t normalized[kMostAxes];
  const int64_t count = axes.normalized_sizes(view.sizes, normalized);
  check(axes.take_parameter(view.sizes, given.axes, given.sizes),
        ("Expected " + std::string(name) + " to be of same shape as normalized_shape, but got " +
         name + " of shape " + text_of(given.axes, given.sizes) + " and normalized_shape = " +
         text_of(count, normalized) + ": pass a " + name + " of the normalized shape")
            .c_str());
  has_kept_axes_ = given.axes != count;
  *type = given.type;
}

ForwardResults run_forward(Call& call, bool for_aten) {
  call.check_tensors();
  Problem& problem = call.problem;
  ForwardResults results;
  results.y = call.empty_as_x(for_aten);
  if (call.addend) results.total = call.empty_as_x(false);
  const SavedRows saved = call.saved_rows(for_aten);
  if (for_aten && !call.is_empty()) {
    results.mean = empty_mean(saved, problem.eps, &problem.statistics);
    results.rstd = empty_contiguous(saved.axes, saved.sizes, saved.shown);
  } else {
    results.rstd = call.empty_statistics(saved.shown);
    problem.statistics.rstd = results.rstd.data();
    if (problem.centered) {
      results.mean = call.empty_statistics(saved.shown);
      results.residual = call.empty_statistics(saved.shown);
      problem.statistics.mean = results.mean.data();
      problem.statistics.residual = results.residual.data();
    }
  }
  if (call.is_empty()) {  // as PyTorch's own
    fill(results.rstd, NAN);
    if (problem.centered) fill(results.mean, 0);
    if (problem.centered) fill(results.residual, 0);
    return results;
  }
  const Order parameter_order = call.parameter_order();
  const Parameter weight(call.weight, parameter_order, InOrder::read),
      bias(call.bias, parameter_order, InOrder::read);
  problem.weight = weight.data();
  InOrder x(call.x, call.order, InOrder::read), y(results.y, call.order, InOrder::write);
  Optional addend(call.addend, call.order, InOrder::read),
      total(results.total, call.order, InOrder::write), gate(call.gate, call.order, InOrder::read);
  Forward job = {};
  job.bias = bias.data();
  job.gate = {{}, call.activation, call.norm_before_gate};
  place(call, {{&x, addend.get() ? job.addends[0] : problem.x},
               {&y, job.y},
               {addend.get(), job.addends[1]},
               {total.get(), problem.x},
               {gate.get(), job.gate.values}});
  job.problem = problem;
  check_memory(forward(job, parallel_for()));
  total.flush();
  y.flush();
  if (for_aten) {
    show(saved, problem.statistics.mean, results.mean);
    show(saved, problem.statistics.rstd, results.rstd);
  }
  return results;
}

QuantizedResults run_quantized(Call& call, const Tensor& given_scale, int64_t type) {
  call.check_tensors();
  check(type >= 0 && type <= static_cast<int64_t>(QuantizedType::float8_e5m2),
        "layernorm: no such 8-bit type");
  Problem& problem = call.problem;
  Forward job = {};
  job.quantized.type = static_cast<QuantizedType>(type);
  QuantizedResults results;
  if (given_scale) {
    const View scale = given_scale.view();
    check(scale.is_served && scale.type == call.compute() && scale.elements() == 1,
          "layernorm: scale needs to be one number of the type of the statistics");
    job.quantized.given_scale = scale.data;
  } else {
    results.scales = call.empty_statistics(call.compute());
    job.quantized.scales = results.scales.data();
  }
  // In the kernels' order.
  Tensor q = empty_bytes(call.order.count, call.order.sizes);
  if (call.is_empty()) {
    constexpr double least[] = {std::numeric_limits<float>::min(),
                                std::numeric_limits<double>::min()};
    if (results.scales) fill(results.scales, least[call.compute() == DataType::float64]);
  } else {
    const Order parameter_order = call.parameter_order();
    const Parameter weight(call.weight, parameter_order, InOrder::read),
        bias(call.bias, parameter_order, InOrder::read);
    problem.weight = weight.data();
    job.bias = bias.data();
    InOrder x(call.x, call.order, InOrder::read);
    Ordered bytes = {q.data(), {}};
    contiguous_strides(call.order.count, call.order.sizes, bytes.strides);
    place(call, {{&x, problem.x}}, {&bytes, &job.quantized.values});
    job.problem = problem;
    check_memory(forward(job, parallel_for()));
  }
  if (!call.order.moves_axes) {
    results.q = std::move(q);
  } else {
    results.q = empty_bytes(call.view.axes, call.view.sizes);
    results.q.in_order(call.order).copy_from(q);
  }
  return results;
}

Tensor run_split_rows(Call& call, SplitRows::Step step, const Tensor& dy, const Tensor& dtotal,
                      Tensor statistics, Tensor means) {
  call.check_tensors();
  Problem& problem = call.problem;
  const int64_t rows = call.rows();
  if (dy) call.check_like_x(dy, "layernorm: dy needs x's sizes and type");
  if (dtotal) call.check_like_x(dtotal, "layernorm: dtotal needs x's sizes and type");
  const auto take = [&](Tensor& given, int64_t count) -> double* {
    if (!given) return nullptr;
    check(given.view().elements() == count * rows, "layernorm: these are not of the rows of x");
    given = contiguous(std::move(given), DataType::float64);
    return static_cast<double*>(given.data());
  };
  SplitRows job = {};
  job.step = step;
  job.stride = rows;
  job.statistics = take(statistics, 4);
  job.numbers = take(means, problem.centered ? 2 : 1);
  const bool is_of_x = step == SplitRows::Step::norm || step == SplitRows::Step::gradient;
  Tensor result = is_of_x ? call.empty_as_x(false) : call.empty_numbers(call.numbers(step));
  if (call.is_empty()) {
    if (!is_of_x) fill_zero(result);
    return result;
  }
  if (!is_of_x) job.numbers = static_cast<double*>(result.data());
  const Tensor absent;
  const Order parameter_order = call.parameter_order();
  const Parameter weight(call.weight, parameter_order, InOrder::read),
      bias(call.bias, parameter_order, InOrder::read);
  problem.weight = weight.data();
  job.bias = bias.data();
  InOrder x(call.x, call.order, InOrder::read);
  Optional in_dy(dy, call.order, InOrder::read), in_dtotal(dtotal, call.order, InOrder::read),
      written(is_of_x ? result : absent, call.order, InOrder::write);
  place(call, {{&x, problem.x},
               {in_dy.get(), job.dy},
               {in_dtotal.get(), job.dtotal},
               {written.get(), job.result}});
  job.problem = problem;
  check_memory(split_rows(job, parallel_for()));
  written.flush();
  return result;
}

BackwardResults run_backward(Call& call, const Tensor& dy, const Tensor& dtotal, Tensor (&saved)[3],
                             const bool (&need)[4], bool for_aten) {
  call.check_tensors();
  Problem& problem = call.problem;
  call.check_like_x(dy, "layernorm: dy needs x's sizes and type");
  if (dtotal) call.check_like_x(dtotal, "layernorm: dtotal needs x's sizes and type");
  BackwardResults results;
  if (need[0]) results.dx = call.empty_as_x(for_aten);
  if (need[1]) results.dweight = call.empty_parameter();
  if (need[2]) results.dbias = call.empty_parameter();
  if (need[3]) results.dgate = call.empty_as_x(false);
  if (call.is_empty()) {
    if (need[1]) fill_zero(results.dweight);
    if (need[2]) fill_zero(results.dbias);
    return results;
  }
  const int64_t rows = call.rows();
  if (!for_aten ||
      !find_saved(saved[0], saved[1], rows, call.compute(), &problem.statistics, &problem.eps)) {
    for (Tensor& each : saved) each = call.statistics(std::move(each));
    const auto data = [](const Tensor& given) { return given ? given.view().data : nullptr; };
    problem.statistics = {data(saved[0]), data(saved[1]), data(saved[2]), {}};
  }
  const Tensor absent;
  const Order parameter_order = call.parameter_order();
  const Parameter weight(call.weight, parameter_order, InOrder::read),
      bias(call.gate ? call.bias : absent, parameter_order, InOrder::read),
      dweight(results.dweight, parameter_order, InOrder::write),
      dbias(results.dbias, parameter_order, InOrder::write);
  problem.weight = weight.data();
  InOrder x(call.x, call.order, InOrder::read), in_dy(dy, call.order, InOrder::read);
  Optional dx(results.dx, call.order, InOrder::write),
      in_dtotal(need[0] ? dtotal : absent, call.order, InOrder::read),
      gate(call.gate, call.order, InOrder::read), dgate(results.dgate, call.order, InOrder::write);
  Backward job = {};
  job.bias = bias.data();
  job.gate = {{}, call.activation, call.norm_before_gate};
  place(call, {{&x, problem.x},
               {&in_dy, job.dy},
               {dx.get(), job.dx},
               {in_dtotal.get(), job.dtotal},
               {gate.get(), job.gate.values},
               {dgate.get(), job.dgate}});
  job.problem = problem;
  job.dweight = dweight.data();
  job.dbias = dbias.data();
  check_memory(backward(job, parallel_for()));
  dx.flush();
  dgate.flush();
  dweight.flush();
  dbias.flush();
  return results;
}

}  // namespace layernorm::torch
