#include "tensorflow_operators.h"

#include <initializer_list>
#include <string>

#include "tensorflow_kernels.h"
#include "tensorflow_shim.h"

namespace layernorm::tensorflow {
namespace {

// y and dx are shaped like x, dweight like weight; the rest is not known before the axes are.
void infer_norm(ShapeContext* context, Status* status) {
  shim.TF_ShapeInferenceContextSetUnknownShape(context, status);
  ShapeHandle* shape = shim.TF_NewShapeHandle();
  shim.TF_ShapeInferenceContextGetInput(context, 0, shape, status);
  if (shim.TF_GetCode(status) == kOk)
    shim.TF_ShapeInferenceContextSetOutput(context, 0, shape, status);
  shim.TF_DeleteShapeHandle(shape);
}

void infer_backward(ShapeContext* context, Status* status) {
  infer_norm(context, status);
  if (shim.TF_GetCode(status) != kOk || shim.TF_ShapeInferenceContextNumInputs(context) < 4) return;
  ShapeHandle* shape = shim.TF_NewShapeHandle();
  shim.TF_ShapeInferenceContextGetInput(context, 3, shape, status);
  if (shim.TF_GetCode(status) == kOk)
    shim.TF_ShapeInferenceContextSetOutput(context, 1, shape, status);
  shim.TF_DeleteShapeHandle(shape);
}

struct Operation {
  const char* name;
  ShapeFunction infer;
  Compute compute;
  std::initializer_list<const char*> inputs, outputs;
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
  OpDefinition* definition = shim.TF_NewOpDefinitionBuilder(operation.name);
  for (const char* each : operation.inputs) shim.TF_OpDefinitionBuilderAddInput(definition, each);
  for (const char* each : operation.outputs) shim.TF_OpDefinitionBuilderAddOutput(definition, each);
  for (const char* each : kAttributes) shim.TF_OpDefinitionBuilderAddAttr(definition, each);
  shim.TF_OpDefinitionBuilderSetShapeInferenceFunction(definition, operation.infer);
  shim.TF_RegisterOpDefinition(definition, status);
  if (!status.ok()) return false;
  KernelBuilder* kernel = shim.TF_NewKernelBuilder(operation.name, "CPU", create_kernel,
                                                   operation.compute, delete_kernel);
  shim.TF_RegisterKernelBuilder(operation.name, kernel, status);
  return status.ok();
}

}  // namespace

const char* define_operators() {
  static std::string reason;
  // Where a graph names an operation that is not registered, TensorFlow's error repeats the name:
  // it says what to do.
  const Operation operations[] = {
      {"LayerNorm__import_layernorm_tensorflow",
       infer_norm,
       compute_norm,
       {"x: T", "weight: weights * P", "bias: biases * P"},
       {"y: T", "statistics: S"}},
      {"LayerNormBackward__import_layernorm_tensorflow",
       infer_backward,
       compute_backward,
       {"dy: T", "x: T", "statistics: S", "weight: weights * P"},
       {"dx: T", "dweight: weights * P", "dbias: biases * P"}},
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
