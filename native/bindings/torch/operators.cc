#include "operators.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "operator_arguments.h"
#include "operator_call.h"

namespace layernorm::torch {
namespace {

// An operator returns tensors: one without elements for a gradient that is not wanted.
Tensor or_nothing(Tensor given) {
  const int64_t none = 0;
  return given ? std::move(given) : empty_contiguous(1, &none, DataType::float32);
}

// axis, eps, zero_centered_weight, with a gate is_silu and norm_before_gate, and for a backward the
// flags `need`. Checked after all have been taken, so that an error leaks none.
void take_definition(Arguments& take, bool centered, Call& call, bool* need = nullptr,
                     int64_t needs = 0) {
  int64_t given[kMostAxes];
  const int64_t count = take.list(given);
  call.problem.centered = centered;
  call.problem.eps = take.number();
  call.problem.zero_centered_weight = take.flag();
  if (call.gate) {
    call.activation = take.flag() ? Activation::silu : Activation::sigmoid;
    call.norm_before_gate = take.flag();
  }
  if (need) take.flags(need, needs);
  call.view = call.x.view();
  call.axes = axes_of(given, count, call.view.axes);
}

// What an operator takes after x.
enum class Beside { nothing, residual, gate };

constexpr char kLayerNorm[] =
    "layer_norm(Tensor x, Tensor? weight, Tensor? bias, int[] axis, float eps, "
    "bool zero_centered_weight=False) -> (Tensor y, Tensor mean, Tensor rstd, Tensor residual)";

constexpr char kAddLayerNorm[] =
    "add_layer_norm(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, int[] axis, "
    "float eps, bool zero_centered_weight=False) "
    "-> (Tensor y, Tensor total, Tensor mean, Tensor rstd, Tensor mean_residual)";

constexpr char kGatedLayerNorm[] =
    "gated_layer_norm(Tensor x, Tensor gate, Tensor? weight, Tensor? bias, int[] axis, float eps, "
    "bool zero_centered_weight, bool silu, bool norm_before_gate) "
    "-> (Tensor y, Tensor mean, Tensor rstd, Tensor residual)";

template <Beside beside>
void layer_norm(Value* stack, uint64_t, uint64_t) {
  Arguments take(stack);
  Call call;
  call.x = take.tensor();
  if (beside == Beside::residual) call.addend = take.tensor();
  if (beside == Beside::gate) call.gate = take.tensor();
  call.weight = take.optional_tensor();
  call.bias = take.optional_tensor();
  take_definition(take, true, call);
  ForwardResults results = run_forward(call, false);
  *stack++ = result(std::move(results.y));
  if (beside == Beside::residual) *stack++ = result(std::move(results.total));
  *stack++ = result(std::move(results.mean));
  *stack++ = result(std::move(results.rstd));
  *stack++ = result(std::move(results.residual));
}

constexpr char kRmsNorm[] =
    "rms_norm(Tensor x, Tensor? weight, int[] axis, float eps, bool zero_centered_weight=False) "
    "-> (Tensor y, Tensor rstd)";

constexpr char kAddRmsNorm[] =
    "add_rms_norm(Tensor x, Tensor residual, Tensor? weight, int[] axis, float eps, "
    "bool zero_centered_weight=False) -> (Tensor y, Tensor total, Tensor rstd)";

constexpr char kGatedRmsNorm[] =
    "gated_rms_norm(Tensor x, Tensor gate, Tensor? weight, int[] axis, float eps, "
    "bool zero_centered_weight, bool silu, bool norm_before_gate) -> (Tensor y, Tensor rstd)";

template <Beside beside>
void rms_norm(Value* stack, uint64_t, uint64_t) {
  Arguments take(stack);
  Call call;
  call.x = take.tensor();
  if (beside == Beside::residual) call.addend = take.tensor();
  if (beside == Beside::gate) call.gate = take.tensor();
  call.weight = take.optional_tensor();
  take_definition(take, false, call);
  ForwardResults results = run_forward(call, false);
  *stack++ = result(std::move(results.y));
  if (beside == Beside::residual) *stack++ = result(std::move(results.total));
  *stack++ = result(std::move(results.rstd));
}

constexpr char kQuantizedLayerNorm[] =
    "quantized_layer_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? scale, int[] axis, "
    "float eps, bool zero_centered_weight, int quantized_type) -> (Tensor q, Tensor scales)";

constexpr char kQuantizedRmsNorm[] =
    "quantized_rms_norm(Tensor x, Tensor? weight, Tensor? scale, int[] axis, float eps, "
    "bool zero_centered_weight, int quantized_type) -> (Tensor q, Tensor scales)";

template <bool centered>
void quantized_norm(Value* stack, uint64_t, uint64_t) {
  Arguments take(stack);
  Call call;
  call.x = take.tensor();
  call.weight = take.optional_tensor();
  if (centered) call.bias = take.optional_tensor();
  const Tensor scale = take.optional_tensor();
  take_definition(take, centered, call);
  QuantizedResults results = run_quantized(call, scale, take.integer());
  stack[0] = result(std::move(results.q));
  stack[1] = result(or_nothing(std::move(results.scales)));
}

constexpr char kLayerNormBackward[] =
    "layer_norm_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor residual, "
    "Tensor? weight, Tensor? bias, int[] axis, float eps, bool zero_centered_weight, bool[3] need) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias)";

constexpr char kAddLayerNormBackward[] =
    "add_layer_norm_backward(Tensor dy, Tensor dtotal, Tensor total, Tensor mean, Tensor rstd, "
    "Tensor mean_residual, Tensor? weight, Tensor? bias, int[] axis, float eps, "
    "bool zero_centered_weight, bool[3] need) -> (Tensor dx, Tensor dweight, Tensor dbias)";

constexpr char kGatedLayerNormBackward[] =
    "gated_layer_norm_backward(Tensor dy, Tensor x, Tensor gate, Tensor mean, Tensor rstd, "
    "Tensor residual, Tensor? weight, Tensor? bias, int[] axis, float eps, "
    "bool zero_centered_weight, bool silu, bool norm_before_gate, bool[4] need) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dgate)";

template <Beside beside>
void layer_norm_backward(Value* stack, uint64_t, uint64_t) {
  Arguments take(stack);
  Call call;
  const Tensor dy = take.tensor(), dtotal = beside == Beside::residual ? take.tensor() : Tensor();
  call.x = take.tensor();
  if (beside == Beside::gate) call.gate = take.tensor();
  Tensor mean = take.tensor(), rstd = take.tensor(), residual = take.tensor();
  Tensor saved[3] = {std::move(mean), std::move(rstd), std::move(residual)};
  call.weight = take.optional_tensor();
  call.bias = take.optional_tensor();
  bool need[4] = {};
  take_definition(take, true, call, need, beside == Beside::gate ? 4 : 3);
  BackwardResults results = run_backward(call, dy, dtotal, saved, need, false);
  stack[0] = result(or_nothing(std::move(results.dx)));
  stack[1] = result(or_nothing(std::move(results.dweight)));
  stack[2] = result(or_nothing(std::move(results.dbias)));
  if (beside == Beside::gate) stack[3] = result(or_nothing(std::move(results.dgate)));
}

constexpr char kRmsNormBackward[] =
    "rms_norm_backward(Tensor dy, Tensor x, Tensor rstd, Tensor? weight, int[] axis, float eps, "
    "bool zero_centered_weight, bool[2] need) -> (Tensor dx, Tensor dweight)";

constexpr char kAddRmsNormBackward[] =
    "add_rms_norm_backward(Tensor dy, Tensor dtotal, Tensor total, Tensor rstd, Tensor? weight, "
    "int[] axis, float eps, bool zero_centered_weight, bool[2] need) "
    "-> (Tensor dx, Tensor dweight)";

constexpr char kGatedRmsNormBackward[] =
    "gated_rms_norm_backward(Tensor dy, Tensor x, Tensor gate, Tensor rstd, Tensor? weight, "
    "int[] axis, float eps, bool zero_centered_weight, bool silu, bool norm_before_gate, "
    "bool[3] need) -> (Tensor dx, Tensor dweight, Tensor dgate)";

template <Beside beside>
void rms_norm_backward(Value* stack, uint64_t, uint64_t) {
  Arguments take(stack);
  Call call;
  const Tensor dy = take.tensor(), dtotal = beside == Beside::residual ? take.tensor() : Tensor();
  call.x = take.tensor();
  if (beside == Beside::gate) call.gate = take.tensor();
  Tensor rstd = take.tensor();
  Tensor saved[3] = {Tensor(), std::move(rstd), Tensor()};
  call.weight = take.optional_tensor();
  bool wanted[3] = {};
  take_definition(take, false, call, wanted, beside == Beside::gate ? 3 : 2);
  BackwardResults results =
      run_backward(call, dy, dtotal, saved, {wanted[0], wanted[1], false, wanted[2]}, false);
  stack[0] = result(or_nothing(std::move(results.dx)));
  stack[1] = result(or_nothing(std::move(results.dweight)));
  if (beside == Beside::gate) stack[2] = result(or_nothing(std::move(results.dgate)));
}

constexpr char kSplitRowsMoments[] =
    "split_rows_moments(Tensor x, int[] axis, bool centered) -> Tensor";

constexpr char kSplitRowsNorm[] =
    "split_rows_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor statistics, int[] axis, "
    "bool centered, bool zero_centered_weight) -> Tensor";

constexpr char kSplitRowsSums[] =
    "split_rows_sums(Tensor dy, Tensor x, Tensor? weight, Tensor statistics, int[] axis, "
    "bool centered, bool zero_centered_weight) -> Tensor";

constexpr char kSplitRowsGradient[] =
    "split_rows_gradient(Tensor dy, Tensor? dtotal, Tensor x, Tensor? weight, Tensor statistics, "
    "Tensor means, int[] axis, bool centered, bool zero_centered_weight) -> Tensor";

template <SplitRows::Step step>
void split_rows_step(Value* stack, uint64_t, uint64_t) {
  using Step = SplitRows::Step;
  Arguments take(stack);
  Call call;
  const bool is_backward = step == Step::sums || step == Step::gradient;
  const Tensor dy = is_backward ? take.tensor() : Tensor();
  const Tensor dtotal = step == Step::gradient ? take.optional_tensor() : Tensor();
  call.x = take.tensor();
  if (step != Step::moments) call.weight = take.optional_tensor();
  if (step == Step::norm) call.bias = take.optional_tensor();
  Tensor statistics = step != Step::moments ? take.tensor() : Tensor();
  Tensor means = step == Step::gradient ? take.tensor() : Tensor();
  int64_t given[kMostAxes];
  const int64_t count = take.list(given);
  call.problem.centered = take.flag();
  if (step != Step::moments) call.problem.zero_centered_weight = take.flag();
  call.view = call.x.view();
  call.axes = axes_of(given, count, call.view.axes);
  *stack = result(run_split_rows(call, step, dy, dtotal, std::move(statistics), std::move(means)));
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
  call.view = call.x.view();
  call.axes = trailing_axes(normalized_shape, count, call.view);
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
  bool need[4] = {};
  take.flags(need, 3);
  call.view = call.x.view();
  call.axes = trailing_axes(normalized_shape, count, call.view);
  call.problem.centered = true;
  call.problem.eps = NAN;  // not known, unless run_backward() finds the statistics to be ours
  BackwardResults results = run_backward(call, dy, Tensor(), saved, need, true);
  stack[0] = result(need[0] ? std::move(results.dx) : undefined());
  stack[1] = result(need[1] ? std::move(results.dweight) : undefined());
  stack[2] = result(need[2] ? std::move(results.dbias) : undefined());
}

constexpr char kSource[] = "layernorm/native/bindings/torch/operators.cc";

bool implement(LibraryHandle library, const char* name, Kernel kernel) {
  return c_api.torch_library_impl(library, name, kernel, kCApiVersion) == 0;
}

struct DeleteLibrary {
  void operator()(LibraryHandle library) const { c_api.aoti_torch_delete_library_object(library); }
};

// Deleting it takes back what is registered in it.
using Library = std::unique_ptr<LibraryOpaque, DeleteLibrary>;

// Kernels for the CPU; null if PyTorch refuses.
Library kernels_of(const char* name_space) {
  LibraryHandle library = nullptr;
  const Error error =
      c_api.aoti_torch_library_init_impl(name_space, "CPU", kSource, __LINE__, &library);
  return Library(error == 0 ? library : nullptr);
}

// Never deleted at exit: PyTorch may be gone by then.
LibraryHandle aten_override = nullptr;

}  // namespace

bool define_operators() {
  LibraryHandle fragment = nullptr;
  if (c_api.aoti_torch_library_init_fragment("layernorm", kSource, __LINE__, &fragment) != 0)
    return false;
  Library definitions(fragment), kernels = kernels_of("layernorm");
  if (!kernels) return false;
  using Operator = std::pair<const char*, Kernel>;
  for (const auto& [schema, kernel] :
       {Operator{kLayerNorm, layer_norm<Beside::nothing>},
        {kLayerNormBackward, layer_norm_backward<Beside::nothing>},
        {kAddLayerNorm, layer_norm<Beside::residual>},
        {kAddLayerNormBackward, layer_norm_backward<Beside::residual>},
        {kGatedLayerNorm, layer_norm<Beside::gate>},
        {kGatedLayerNormBackward, layer_norm_backward<Beside::gate>},
        {kRmsNorm, rms_norm<Beside::nothing>},
        {kRmsNormBackward, rms_norm_backward<Beside::nothing>},
        {kAddRmsNorm, rms_norm<Beside::residual>},
        {kAddRmsNormBackward, rms_norm_backward<Beside::residual>},
        {kGatedRmsNorm, rms_norm<Beside::gate>},
        {kGatedRmsNormBackward, rms_norm_backward<Beside::gate>},
        {kQuantizedLayerNorm, quantized_norm<true>},
        {kQuantizedRmsNorm, quantized_norm<false>},
        {kSplitRowsMoments, split_rows_step<SplitRows::Step::moments>},
        {kSplitRowsNorm, split_rows_step<SplitRows::Step::norm>},
        {kSplitRowsSums, split_rows_step<SplitRows::Step::sums>},
        {kSplitRowsGradient, split_rows_step<SplitRows::Step::gradient>}}) {
    const std::string name(schema, std::strchr(schema, '('));
    if (c_api.aoti_torch_library_def(definitions.get(), schema) != 0 ||
        !implement(kernels.get(), name.c_str(), kernel))
      return false;
  }
  definitions.release();
  kernels.release();
  return true;
}

bool override_aten() {
  if (aten_override) return true;
  Library kernels = kernels_of("aten");
  if (!kernels || !implement(kernels.get(), "native_layer_norm", native_layer_norm) ||
      !implement(kernels.get(), "native_layer_norm_backward", native_layer_norm_backward))
    return false;
  aten_override = kernels.release();
  return true;
}

bool restore_aten() {
  if (!aten_override) return true;
  const Error error = c_api.aoti_torch_delete_library_object(aten_override);
  aten_override = nullptr;
  return error == 0;
}

}  // namespace layernorm::torch
