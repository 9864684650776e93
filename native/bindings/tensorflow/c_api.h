// TensorFlow's C interface for operations and kernels, looked up in the library that TensorFlow has
// loaded. TensorFlow is not needed to build, and one binary serves every version that has these
// functions (tensorflow/c/ops.h, kernels.h, tf_tensor.h and tf_status.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "runtime/loaded_library.h"

namespace layernorm::tensorflow {

struct Status;
struct Tensor;
struct OpDefinition;
struct KernelBuilder;
struct KernelConstruction;
struct KernelContext;
struct ShapeContext;
struct ShapeHandle;

using ShapeFunction = void (*)(ShapeContext*, Status*);
using Create = void* (*)(KernelConstruction*);
using Compute = void (*)(void* kernel, KernelContext*);
using Delete = void (*)(void* kernel);

constexpr int kOk = 0, kInvalidArgument = 3, kResourceExhausted = 8;  // codes of a status

// X(result, name, parameters)
#define LAYERNORM_TENSORFLOW_FUNCTIONS(X)                                                     \
  X(Status*, TF_NewStatus, ())                                                                \
  X(void, TF_DeleteStatus, (Status*))                                                         \
  X(void, TF_SetStatus, (Status*, int, const char*))                                          \
  X(int, TF_GetCode, (const Status*))                                                         \
  X(const char*, TF_Message, (const Status*))                                                 \
  X(OpDefinition*, TF_NewOpDefinitionBuilder, (const char*))                                  \
  X(void, TF_OpDefinitionBuilderAddAttr, (OpDefinition*, const char*))                        \
  X(void, TF_OpDefinitionBuilderAddInput, (OpDefinition*, const char*))                       \
  X(void, TF_OpDefinitionBuilderAddOutput, (OpDefinition*, const char*))                      \
  X(void, TF_OpDefinitionBuilderSetShapeInferenceFunction, (OpDefinition*, ShapeFunction))    \
  X(void, TF_RegisterOpDefinition, (OpDefinition*, Status*))                                  \
  X(KernelBuilder*, TF_NewKernelBuilder, (const char*, const char*, Create, Compute, Delete)) \
  X(void, TF_RegisterKernelBuilder, (const char*, KernelBuilder*, Status*))                   \
  X(ShapeHandle*, TF_NewShapeHandle, ())                                                      \
  X(void, TF_DeleteShapeHandle, (ShapeHandle*))                                               \
  X(int64_t, TF_ShapeInferenceContextNumInputs, (ShapeContext*))                              \
  X(void, TF_ShapeInferenceContextGetInput, (ShapeContext*, int, ShapeHandle*, Status*))      \
  X(void, TF_ShapeInferenceContextSetOutput, (ShapeContext*, int, ShapeHandle*, Status*))     \
  X(void, TF_ShapeInferenceContextSetUnknownShape, (ShapeContext*, Status*))                  \
  X(void, TF_OpKernelConstruction_GetAttrSize,                                                \
    (KernelConstruction*, const char*, int32_t*, int32_t*, Status*))                          \
  X(void, TF_OpKernelConstruction_GetAttrInt64,                                               \
    (KernelConstruction*, const char*, int64_t*, Status*))                                    \
  X(void, TF_OpKernelConstruction_GetAttrInt64List,                                           \
    (KernelConstruction*, const char*, int64_t*, int, Status*))                               \
  X(void, TF_OpKernelConstruction_GetAttrBool,                                                \
    (KernelConstruction*, const char*, unsigned char*, Status*))                              \
  X(void, TF_OpKernelConstruction_GetAttrType,                                                \
    (KernelConstruction*, const char*, int32_t*, Status*))                                    \
  X(void, TF_OpKernelConstruction_Failure, (KernelConstruction*, Status*))                    \
  X(void, TF_OpKernelContext_Failure, (KernelContext*, Status*))                              \
  X(void, TF_GetInput, (KernelContext*, int, Tensor**, Status*))                              \
  X(Tensor*, TF_AllocateOutput,                                                               \
    (KernelContext*, int, int32_t, const int64_t*, int, size_t, Status*))                     \
  X(Tensor*, TF_ForwardInputOrAllocateOutput,                                                 \
    (KernelContext*, const int*, int, int, const int64_t*, int, int*, Status*))               \
  X(void, TF_DeleteTensor, (Tensor*))                                                         \
  X(int32_t, TF_TensorType, (const Tensor*))                                                  \
  X(int, TF_NumDims, (const Tensor*))                                                         \
  X(int64_t, TF_Dim, (const Tensor*, int))                                                    \
  X(size_t, TF_TensorByteSize, (const Tensor*))                                               \
  X(void*, TF_TensorData, (const Tensor*))

struct CApi {
  LAYERNORM_TENSORFLOW_FUNCTIONS(LAYERNORM_DECLARE)

  // Returns the name of a function that the library does not have, or null.
  const char* find(const LoadedLibrary& library);
};

// All null until load_c_api() has found every function.
extern CApi c_api;

// Finds the functions in the library with this file name or path, which TensorFlow has loaded.
// Returns the name of what was not found, or null.
inline const char* load_c_api(const char* library) { return load_functions(library, &c_api); }

struct DeleteStatus {
  void operator()(Status* status) const { c_api.TF_DeleteStatus(status); }
};

class OwnedStatus {
 public:
  OwnedStatus() : status_(c_api.TF_NewStatus()) {}

  operator Status*() const { return status_.get(); }
  bool ok() const { return c_api.TF_GetCode(status_.get()) == kOk; }
  const char* message() const { return c_api.TF_Message(status_.get()); }

 private:
  std::unique_ptr<Status, DeleteStatus> status_;
};

}  // namespace layernorm::tensorflow
