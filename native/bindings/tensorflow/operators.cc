#include "operators.h"

#include <initializer_list>
#include <string>

#include "c_api.h"
#include "kernels.h"

namespace layernorm::tensorflow {
namespace {

// Output `to` has the shape of input `from`.
void copy_shape(ShapeContext* context, int from, int to, Status* status) {
  if (c_api.TF_GetCode(status) != kOk) return;
  ShapeHandle* shape = c_api.TF_NewShapeHandle();
  c_api.TF_ShapeInferenceContextGetInput(context, from, shape, status);
  if (c_api.TF_GetCode(status) == kOk)
    c_api.TF_ShapeInferenceContextSetOutput(context, to, shape, status);
  c_api.TF_DeleteShapeHandle(shape);
}

// y, q, total and dx have x's shape, dweight has weight's; the others depend on the axes.
void infer_norm(ShapeContext* context, Status* status) {
  c_api.TF_ShapeInferenceContextSetUnknownShape(context, status);
  copy_shape(context, 0, 0, status);
}

void infer_norm_of_sum(ShapeContext* context, Status* status) {
  infer_norm(context, status);
  copy_shape(context, 0, 2, status);
}

// dgate has x's shape, and dweight and dbias those of weight and bias, inputs of as many.
void infer_gated_backward(ShapeContext* context, Status* status) {
  infer_norm(context, status);
  copy_shape(context, 0, 1, status);
  const auto inputs = static_cast<int>(c_api.TF_ShapeInferenceContextNumInputs(context));
  for (int parameter = 4; parameter < inputs; ++parameter)
    copy_shape(context, parameter, parameter - 2, status);
}

template <int weight>  // the input that it is, if it is given
void infer_backward(ShapeContext* context, Status* status) {
  infer_norm(context, status);
  if (c_api.TF_ShapeInferenceContextNumInputs(context) > weight)
    copy_shape(context, weight, 1, status);
}

struct Operation {
  const char* name;
  ShapeFunction infer;
  Create create;
  Compute compute;
  std::initializer_list<const char*> inputs, outputs, attributes = {};
};

constexpr const char* kAttributes[] = {
    "T: {half, bfloat16, float, double}",
    "P: {half, bfloat16, float, double} = DT_FLOAT",
    "S: {float, double} = DT_FLOAT",
    "weights: int >= 0",
    "biases: int >= 0",
    "axis: list(int)",
    "eps_bits: int",
    "centered: bool",
    "zero_centered_weight: bool",
};

bool define(const Operation& operation, const OwnedStatus& status) {
  OpDefinition* definition = c_api.TF_NewOpDefinitionBuilder(operation.name);
  for (const char* each : operation.inputs) c_api.TF_OpDefinitionBuilderAddInput(definition, each);
  for (const char* each : operation.outputs)
    c_api.TF_OpDefinitionBuilderAddOutput(definition, each);
  for (const char* each : kAttributes) c_api.TF_OpDefinitionBuilderAddAttr(definition, each);
  for (const char* each : operation.attributes)
    c_api.TF_OpDefinitionBuilderAddAttr(definition, each);
  c_api.TF_OpDefinitionBuilderSetShapeInferenceFunction(definition, operation.infer);
  c_api.TF_RegisterOpDefinition(definition, status);
  if (!status.ok()) return false;
  KernelBuilder* kernel = c_api.TF_NewKernelBuilder(operation.name, "CPU", operation.create,
                                                    operation.compute, delete_kernel);
  c_api.TF_RegisterKernelBuilder(operation.name, kernel, status);
  return status.ok();
}

}  // namespace

const char* define_operators() {
  static std::string reason;
  // For a graph with an operation that is not registered, TensorFlow's error repeats its name, which
  // therefore says what to do.
  const Operation operations[] = {
      {"LayerNorm__import_layernorm_tensorflow",
       infer_norm,
       create_kernel,
       compute_norm,
       {"x: T", "weight: weights * P", "bias: biases * P"},
       {"y: T", "statistics: S"}},
      {"LayerNormBackward__import_layernorm_tensorflow",
       infer_backward<3>,
       create_kernel,
       compute_backward,
       {"dy: T", "x: T", "statistics: S", "weight: weights * P"},
       {"dx: T", "dweight: weights * P", "dbias: biases * P"}},
      {"LayerNormOfSum__import_layernorm_tensorflow",
       infer_norm_of_sum,
       create_kernel,
       compute_norm_of_sum,
       {"x: T", "residual: T", "weight: weights * P", "bias: biases * P"},
       {"y: T", "statistics: S", "total: T"}},
      {"LayerNormOfSumBackward__import_layernorm_tensorflow",
       infer_backward<4>,
       create_kernel,
       compute_backward_of_sum,
       {"dy: T", "total: T", "statistics: S", "dtotal: T", "weight: weights * P"},
       {"dx: T", "dweight: weights * P", "dbias: biases * P"}},
      {"GatedLayerNorm__import_layernorm_tensorflow",
       infer_norm,
       create_gated_kernel,
       compute_gated_norm,
       {"x: T", "gate: T", "weight: weights * P", "bias: biases * P"},
       {"y: T", "statistics: S"},
       {"silu: bool", "norm_before_gate: bool"}},
      {"GatedLayerNormBackward__import_layernorm_tensorflow",
       infer_gated_backward,
       create_gated_kernel,
       compute_gated_backward,
       {"dy: T", "x: T", "statistics: S", "gate: T", "weight: weights * P", "bias: biases * P"},
       {"dx: T", "dgate: T", "dweight: weights * P", "dbias: biases * P"},
       {"silu: bool", "norm_before_gate: bool"}},
      {"QuantizedLayerNorm__import_layernorm_tensorflow",
       infer_norm,
       create_quantized_kernel,
       compute_quantized_norm,
       {"x: T", "scale: S", "weight: weights * P", "bias: biases * P"},
       {"q: Q", "scales: S"},
       {"Q: type"}},  // the grammar for attributes has no float8, so the kernel checks it
  };
  for (const Operation& each : operations) {
    const OwnedStatus status;
    if (!define(each, status)) {
      reason = status.message();
      return reason.c_str();
    }
  }
  return nullptr;
}

}  // namespace layernorm::tensorflow
