// PyTorch's stable C interface, looked up in the library that PyTorch has loaded. PyTorch is not
// needed to build, and one binary serves every version from 2.10 on: these functions keep their
// binary interface (torch/csrc/stable/c/shim.h and torch/csrc/inductor/aoti_torch/c/shim.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "layer_norm.h"
#include "runtime/loaded_library.h"

namespace layernorm::torch {

struct TensorOpaque;
struct LibraryOpaque;
struct ListOpaque;
using TensorHandle = TensorOpaque*;
using LibraryHandle = LibraryOpaque*;
using ListHandle = ListOpaque*;
using Value = uint64_t;  // an argument or a result of an operator
using Kernel = void (*)(Value* stack, uint64_t arguments, uint64_t results);
using Error = int32_t;  // 0: success

// X(result, name, parameters)
#define LAYERNORM_TORCH_FUNCTIONS(X)                                                               \
  X(int32_t, aoti_torch_device_type_cpu, ())                                                       \
  X(int32_t, aoti_torch_dtype_float16, ())                                                         \
  X(int32_t, aoti_torch_dtype_bfloat16, ())                                                        \
  X(int32_t, aoti_torch_dtype_float32, ())                                                         \
  X(int32_t, aoti_torch_dtype_float64, ())                                                         \
  X(int32_t, aoti_torch_dtype_int8, ())                                                            \
  X(int32_t, aoti_torch_layout_strided, ())                                                        \
  X(bool, aoti_torch_grad_mode_is_enabled, ())                                                     \
  X(void, aoti_torch_check, (bool, const char*, const char*, uint32_t, const char*))               \
  X(Error, aoti_torch_is_defined, (TensorHandle, bool*))                                           \
  X(Error, aoti_torch_get_storage_size, (TensorHandle, int64_t*))                                  \
  X(Error, aoti_torch_get_storage_offset, (TensorHandle, int64_t*))                                \
  X(Error, aoti_torch__reinterpret_tensor,                                                         \
    (TensorHandle, int64_t, const int64_t*, const int64_t*, int64_t, TensorHandle*))               \
  X(Error, aoti_torch_get_dim, (TensorHandle, int64_t*))                                           \
  X(Error, aoti_torch_get_sizes, (TensorHandle, int64_t**))                                        \
  X(Error, aoti_torch_get_strides, (TensorHandle, int64_t**))                                      \
  X(Error, aoti_torch_get_dtype, (TensorHandle, int32_t*))                                         \
  X(Error, aoti_torch_get_layout, (TensorHandle, int32_t*))                                        \
  X(Error, aoti_torch_get_device_type, (TensorHandle, int32_t*))                                   \
  X(Error, aoti_torch_as_strided, (TensorHandle, const int64_t*, const int64_t*, TensorHandle*))   \
  X(Error, aoti_torch_copy_, (TensorHandle, TensorHandle, int32_t))                                \
  X(Error, aoti_torch_empty_strided,                                                               \
    (int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, TensorHandle*))           \
  X(Error, aoti_torch_new_uninitialized_tensor, (TensorHandle*))                                   \
  X(Error, aoti_torch_delete_tensor_object, (TensorHandle))                                        \
  X(Error, aoti_torch_library_init_fragment, (const char*, const char*, uint32_t, LibraryHandle*)) \
  X(Error, aoti_torch_library_init_impl,                                                           \
    (const char*, const char*, const char*, uint32_t, LibraryHandle*))                             \
  X(Error, aoti_torch_library_def, (LibraryHandle, const char*))                                   \
  X(Error, aoti_torch_delete_library_object, (LibraryHandle))                                      \
  X(Error, torch_library_impl, (LibraryHandle, const char*, Kernel, uint64_t))                     \
  X(Error, torch_get_const_data_ptr, (TensorHandle, const void**))                                 \
  X(Error, torch_get_mutable_data_ptr, (TensorHandle, void**))                                     \
  X(Error, torch_list_size, (ListHandle, size_t*))                                                 \
  X(Error, torch_list_get_item, (ListHandle, size_t, Value*))                                      \
  X(Error, torch_delete_list, (ListHandle))                                                        \
  X(Error, torch_get_num_threads, (uint32_t*))                                                     \
  X(Error, torch_parallel_for,                                                                     \
    (int64_t, int64_t, int64_t, void (*)(int64_t, int64_t, void*), void*))

// Since PyTorch 2.11: null before.
#define LAYERNORM_TORCH_LATER_FUNCTIONS(X)                                               \
  X(Error, torch_from_blob,                                                              \
    (void*, int64_t, const int64_t*, const int64_t*, int64_t, int32_t, int32_t, int32_t, \
     TensorHandle*, int32_t, const uint8_t*, int64_t, void (*)(void*, void*), void*))

struct CApi {
  LAYERNORM_TORCH_FUNCTIONS(LAYERNORM_DECLARE)
  LAYERNORM_TORCH_LATER_FUNCTIONS(LAYERNORM_DECLARE)

  // Returns the name of a function that every version has but the library lacks, or null.
  const char* find(const LoadedLibrary& library);
};

// All null until load_c_api() has found every function.
extern CApi c_api;

// Finds the functions in the library with this file name or path, which PyTorch has loaded. Returns
// the name of what was not found, or null.
inline const char* load_c_api(const char* library) { return load_functions(library, &c_api); }

// The values on the stack have the form of this version.
constexpr uint64_t kCApiVersion = 0x020a000000000000;  // 2.10.0

// PyTorch's threads, as many as torch.set_num_threads sets.
Threads parallel_for();

}  // namespace layernorm::torch
