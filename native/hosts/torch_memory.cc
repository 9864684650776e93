#include "torch_memory.h"

#include <memory>
#include <new>
#include <vector>

#include "huge_pages.h"
#include "kept_memory.h"

namespace layernorm::torch {
namespace {

struct Managed : dlpack::ManagedTensor {
  size_t bytes;
  std::vector<int64_t> shape, strides;
};

void release(dlpack::ManagedTensor* given) {
  auto* managed = static_cast<Managed*>(given);
  keep_memory(managed->tensor.data, managed->bytes);
  delete managed;
}

void release_data(void* data, void* bytes) { keep_memory(data, reinterpret_cast<size_t>(bytes)); }

}  // namespace

dlpack::ManagedTensor* large_managed_like(const dlpack::Tensor& like, int64_t bytes) {
  void* data = take_memory(static_cast<size_t>(bytes));
  if (!data) return nullptr;
  try {
    auto managed = std::make_unique<Managed>();
    managed->bytes = static_cast<size_t>(bytes);
    managed->shape.assign(like.shape, like.shape + like.ndim);
    managed->strides.assign(like.strides, like.strides + like.ndim);
    managed->version = {dlpack::kMajor, 0};
    managed->context = nullptr;
    managed->deleter = release;
    managed->flags = 0;
    managed->tensor = like;
    managed->tensor.data = data;
    managed->tensor.byte_offset = 0;
    managed->tensor.shape = managed->shape.data();
    managed->tensor.strides = managed->strides.data();
    return managed.release();
  } catch (const std::bad_alloc&) {
    keep_memory(data, static_cast<size_t>(bytes));
    return nullptr;
  }
}

Tensor large_empty(int64_t axes, const int64_t* sizes, const int64_t* strides, DataType type,
                   int64_t bytes) {
  const auto size = static_cast<size_t>(bytes);
  void* data = shim.torch_from_blob ? take_memory(size) : nullptr;
  if (!data) {
    Tensor result = empty(axes, sizes, strides, type);
    ask_for_huge_pages(result.write(), bytes);
    return result;
  }
  TensorHandle handle = nullptr;
  constexpr int32_t kNoIndex = -1;  // with 0, PyTorch finds that the memory is on another device
  const Error error = shim.torch_from_blob(data, axes, sizes, strides, 0, scalar_type(type),
                                           shim.aoti_torch_device_type_cpu(), kNoIndex, &handle,
                                           shim.aoti_torch_layout_strided(), nullptr, 0,
                                           release_data, reinterpret_cast<void*>(size));
  if (error != 0) keep_memory(data, size);
  check(error);
  return Tensor(handle);
}

}  // namespace layernorm::torch
