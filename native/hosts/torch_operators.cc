#include "torch_operators.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "huge_pages.h"
#include "torch_arguments.h"
#include "torch_saved.h"

namespace layernorm::torch {
namespace {

// What the forward and the backward of each operator have in common.
struct Call {
  Tensor x, weight, bias;  // weight, bias: may be absent
  Axes axes;
  Problem problem = {};
  Order order;

  void take_types() {
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

  bool is_empty() const { return x.elements() == 0; }
  DataType compute() const { return compute_type(problem.type); }

  Tensor empty_parameter() const {
    int64_t sizes[kMostAxes];
    const int64_t count = normalized_sizes(sizes);
    return empty_contiguous(count, sizes, problem.parameter_type);
  }
  // y or dx. PyTorch's own are contiguous whatever x is.
  Tensor empty_as_x(bool contiguous) const {
    if (!contiguous) return empty_as(x, problem.type);
    Tensor result = empty_contiguous(x.axes(), x.sizes(), problem.type);
    ask_for_huge_pages(result.write(), x.elements() * size_of(problem.type));
    return result;
  }
  Tensor empty_statistics(DataType type) const {
    return empty_contiguous(axes.count, statistics_sizes_, type);
  }
  SavedRows saved_rows(bool for_aten) {
    for (int64_t axis = 0; axis < axes.count; ++axis)
      statistics_sizes_[axis] = axes.normalized[axis] ? 1 : x.sizes()[axis];
    const bool in_16_bits = size_of(problem.type) == 2 && problem.parameter_type == problem.type;
    const DataType shown = for_aten && in_16_bits ? problem.type : compute();
    return {axes.count, statistics_sizes_, axes.rows(x.sizes()), shown, compute()};
  }
  // A mean, rstd or residual that was saved, as the kernels read it.
  Tensor statistics(Tensor given) const {
    if (!given) return given;
    check(given.is_plain() && given.elements() == axes.rows(x.sizes()),
          "layernorm: the statistics are not those of this x");
    return contiguous(std::move(given), compute());
  }

 private:
  int64_t statistics_sizes_[kMostAxes];

  void check_parameter(const char* name, const Tensor& parameter, DataType* type) const {
    if (!parameter) return;
    const bool fits =
        parameter.is_plain() && parameter.data_type(type) &&
        (*type == problem.type || (size_of(problem.type) == 2 && *type == DataType::float32));
    check(fits,
          (std::string("mixed dtype (CPU): ") + name +
           " needs the type of x, or float32 beside a 16-bit x: pass " + name + ".to(x.dtype)")
              .c_str());
    int64_t normalized[kMostAxes];
    const int64_t count = normalized_sizes(normalized);
    check(
        parameter.axes() == count && std::equal(normalized, normalized + count, parameter.sizes()),
        ("Expected " + std::string(name) + " to be of same shape as normalized_shape, but got " +
         name + " of shape " + words(parameter.sizes(), parameter.axes()) +
         " and normalized_shape = " + words(normalized, count))
            .c_str());
  }
  int64_t normalized_sizes(int64_t* sizes) const {
    int64_t count = 0;
    for (int64_t axis = 0; axis < axes.count; ++axis)
      if (axes.normalized[axis]) sizes[count++] = x.sizes()[axis];
    return count;
  }
};

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

struct ForwardResults {
  Tensor y, mean, rstd, residual;
};

// `for_aten`: with a contiguous y, and mean and rstd as PyTorch's own autograd saves them.
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
  const Walked x = Walked::to_read(call.x, call.axes, call.order, problem.type);
  const Walked y = Walked::to_write(results.y, call.axes, call.order, problem.type);
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

struct BackwardResults {
  Tensor dx, dweight, dbias;  // absent: not wanted
};

// `saved` are mean, rstd and residual; without the residual it is worked out again.
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
  const int64_t rows = call.axes.rows(call.x.sizes());
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
  const Walked x = Walked::to_read(call.x, call.axes, call.order, problem.type);
  const Walked walked_dy = Walked::to_read(dy, call.axes, call.order, problem.type);
  Walked dx;
  if (need[0]) dx = Walked::to_write(results.dx, call.axes, call.order, problem.type);
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

// A gradient that was not asked for is a tensor without elements: an operator returns tensors.
Tensor or_nothing(Tensor given) {
  const int64_t none = 0;
  return given ? std::move(given) : empty_contiguous(1, &none, DataType::float32);
}

// axis, eps, zero_centered_weight
void take_definition(Arguments& take, bool centered, Call& call) {
  int64_t given[kMostAxes];
  const int64_t count = take.list(given);
  call.axes = axes_of(given, count, call.x.axes());
  call.problem.centered = centered;
  call.problem.eps = take.number();
  call.problem.zero_centered_weight = take.flag();
}

constexpr char kLayerNorm[] =
    "layer_norm(Tensor x, Tensor? weight, Tensor? bias, int[] axis, float eps, "
    "bool zero_centered_weight=False) -> (Tensor y, Tensor mean, Tensor rstd, Tensor residual)";

void layer_norm(Value* stack, uint64_t, uint64_t) {
  Arguments take(stack);
  Call call;
  call.x = take.tensor();
  call.weight = take.optional_tensor();
  call.bias = take.optional_tensor();
  take_definition(take, true, call);
  ForwardResults results = run_forward(call, false);
  stack[0] = result(std::move(results.y));
  stack[1] = result(std::move(results.mean));
  stack[2] = result(std::move(results.rstd));
  stack[3] = result(std::move(results.residual));
}

constexpr char kRmsNorm[] =
    "rms_norm(Tensor x, Tensor? weight, int[] axis, float eps, bool zero_centered_weight=False) "
    "-> (Tensor y, Tensor rstd)";

void rms_norm(Value* stack, uint64_t, uint64_t) {
  Arguments take(stack);
  Call call;
  call.x = take.tensor();
  call.weight = take.optional_tensor();
  take_definition(take, false, call);
  ForwardResults results = run_forward(call, false);
  stack[0] = result(std::move(results.y));
  stack[1] = result(std::move(results.rstd));
}

constexpr char kLayerNormBackward[] =
    "layer_norm_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor residual, "
    "Tensor? weight, Tensor? bias, int[] axis, float eps, bool zero_centered_weight, bool[3] need) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias)";

void layer_norm_backward(Value* stack, uint64_t, uint64_t) {
  Arguments take(stack);
  Call call;
  const Tensor dy = take.tensor();
  call.x = take.tensor();
  Tensor mean = take.tensor(), rstd = take.tensor(), residual = take.tensor();
  Tensor saved[3] = {std::move(mean), std::move(rstd), std::move(residual)};
  call.weight = take.optional_tensor();
  call.bias = take.optional_tensor();
  take_definition(take, true, call);
  bool need[3];
  take.flags(need);
  BackwardResults results = run_backward(call, dy, saved, need, false);
  stack[0] = result(or_nothing(std::move(results.dx)));
  stack[1] = result(or_nothing(std::move(results.dweight)));
  stack[2] = result(or_nothing(std::move(results.dbias)));
}

constexpr char kRmsNormBackward[] =
    "rms_norm_backward(Tensor dy, Tensor x, Tensor rstd, Tensor? weight, int[] axis, float eps, "
    "bool zero_centered_weight, bool[2] need) -> (Tensor dx, Tensor dweight)";

void rms_norm_backward(Value* stack, uint64_t, uint64_t) {
  Arguments take(stack);
  Call call;
  const Tensor dy = take.tensor();
  call.x = take.tensor();
  Tensor rstd = take.tensor();
  Tensor saved[3] = {Tensor(), std::move(rstd), Tensor()};
  call.weight = take.optional_tensor();
  take_definition(take, false, call);
  bool wanted[2];
  take.flags(wanted);
  BackwardResults results = run_backward(call, dy, saved, {wanted[0], wanted[1], false}, false);
  stack[0] = result(or_nothing(std::move(results.dx)));
  stack[1] = result(or_nothing(std::move(results.dweight)));
}

// aten::native_layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias,
//                         float eps) -> (Tensor, Tensor, Tensor)
void native_layer_norm(Value* stack, uint64_t, uint64_t) {
  Arguments take(stack);
  Call call;
  int64_t normalized_shape[kMostAxes];
  call.x = take.tensor();
  const int64_t count = take.list(normalized_shape);
  call.weight = take.optional_tensor();
  call.bias = take.optional_tensor();
  call.axes = trailing_axes(normalized_shape, count, call.x);
  call.problem.centered = true;
  call.problem.eps = take.number();
  ForwardResults results = run_forward(call, true);
  stack[0] = result(std::move(results.y));
  stack[1] = result(std::move(results.mean));
  stack[2] = result(std::move(results.rstd));
}

// aten::native_layer_norm_backward(Tensor grad_out, Tensor input, SymInt[] normalized_shape,
//                                  Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias,
//                                  bool[3] output_mask) -> (Tensor, Tensor, Tensor)
void native_layer_norm_backward(Value* stack, uint64_t, uint64_t) {
  Arguments take(stack);
  Call call;
  int64_t normalized_shape[kMostAxes];
  const Tensor dy = take.tensor();
  call.x = take.tensor();
  const int64_t count = take.list(normalized_shape);
  Tensor mean = take.tensor(), rstd = take.tensor();
  Tensor saved[3] = {std::move(mean), std::move(rstd), Tensor()};
  call.weight = take.optional_tensor();
  call.bias = take.optional_tensor();
  bool need[3];
  take.flags(need);
  call.axes = trailing_axes(normalized_shape, count, call.x);
  call.problem.centered = true;
  BackwardResults results = run_backward(call, dy, saved, need, true);
  stack[0] = result(need[0] ? std::move(results.dx) : undefined());
  stack[1] = result(need[1] ? std::move(results.dweight) : undefined());
  stack[2] = result(need[2] ? std::move(results.dbias) : undefined());
}

constexpr char kSource[] = "layernorm/native/hosts/torch_operators.cc";

bool implement(LibraryHandle library, const char* name, Kernel kernel) {
  return shim.torch_library_impl(library, name, kernel, kShimVersion) == 0;
}

LibraryHandle aten_override = nullptr;

}  // namespace

bool define_operators() {
  LibraryHandle definitions = nullptr, kernels = nullptr;
  if (shim.aoti_torch_library_init_fragment("layernorm", kSource, __LINE__, &definitions) != 0 ||
      shim.aoti_torch_library_init_impl("layernorm", "CPU", kSource, __LINE__, &kernels) != 0)
    return false;
  for (const char* schema : {kLayerNorm, kLayerNormBackward, kRmsNorm, kRmsNormBackward})
    if (shim.aoti_torch_library_def(definitions, schema) != 0) return false;
  return implement(kernels, "layer_norm", layer_norm) &&
         implement(kernels, "layer_norm_backward", layer_norm_backward) &&
         implement(kernels, "rms_norm", rms_norm) &&
         implement(kernels, "rms_norm_backward", rms_norm_backward);
}

bool override_aten() {
  if (aten_override) return true;
  if (shim.aoti_torch_library_init_impl("aten", "CPU", kSource, __LINE__, &aten_override) != 0)
    return false;
  return implement(aten_override, "native_layer_norm", native_layer_norm) &&
         implement(aten_override, "native_layer_norm_backward", native_layer_norm_backward);
}

bool restore_aten() {
  if (!aten_override) return true;
  const Error error = shim.aoti_torch_delete_library_object(aten_override);
  aten_override = nullptr;
  return error == 0;
}

}  // namespace layernorm::torch
