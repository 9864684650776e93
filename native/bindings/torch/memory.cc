#include "memory.h"

#include <algorithm>
#include <cstdlib>

#include "runtime/buffer_cache.h"
#include "runtime/huge_pages.h"

namespace layernorm::torch {
namespace {

constexpr size_t kLine = 64;

// Its sizes and strides follow it, and the memory of a tensor that is not large.
struct Managed : dlpack::ManagedTensor {
  size_t bytes;

  int64_t* sizes() { return reinterpret_cast<int64_t*>(this + 1); }
  void* memory_behind() {
    const auto end = reinterpret_cast<uintptr_t>(sizes() + 2 * tensor.ndim);
    return reinterpret_cast<void*>((end + kLine - 1) / kLine * kLine);
  }
};

void release(dlpack::ManagedTensor* given) {
  auto* managed = static_cast<Managed*>(given);
  // Not where the data lies: malloc may put a large tensor's own memory right behind this one's.
  if (is_large(static_cast<int64_t>(managed->bytes)))
    return_buffer(managed->tensor.data, managed->bytes);
  std::free(managed);
}

void release_data(void* data, void* bytes) { return_buffer(data, reinterpret_cast<size_t>(bytes)); }

}  // namespace

dlpack::ManagedTensor* managed_like(const dlpack::Tensor& like, int64_t bytes) {
  const auto size = static_cast<size_t>(bytes);
  const size_t header = sizeof(Managed) + 2 * sizeof(int64_t) * static_cast<size_t>(like.ndim);
  void* memory = is_large(bytes) ? take_buffer(size) : nullptr;
  if (is_large(bytes) && !memory) return nullptr;
  auto* managed = static_cast<Managed*>(std::malloc(header + (memory ? 0 : kLine + size)));
  if (!managed) {
    if (memory) return_buffer(memory, size);
    return nullptr;
  }
  managed->version = {dlpack::kMajor, 0};
  managed->context = nullptr;
  managed->deleter = release;
  managed->flags = 0;
  managed->bytes = size;
  managed->tensor = like;
  managed->tensor.data = memory ? memory : managed->memory_behind();
  managed->tensor.byte_offset = 0;
  managed->tensor.shape = managed->sizes();
  managed->tensor.strides = managed->sizes() + like.ndim;
  std::copy(like.shape, like.shape + like.ndim, managed->tensor.shape);
  std::copy(like.strides, like.strides + like.ndim, managed->tensor.strides);
  return managed;
}

Tensor large_empty(int64_t axes, const int64_t* sizes, const int64_t* strides, DataType type,
                   int64_t bytes) {
  const auto size = static_cast<size_t>(bytes);
  void* data = c_api.torch_from_blob ? take_buffer(size) : nullptr;
  if (!data) {
    Tensor result = empty(axes, sizes, strides, type);
    ask_for_huge_pages(result.write(), bytes);
    return result;
  }
  TensorHandle handle = nullptr;
  constexpr int32_t kNoIndex = -1;  // with 0, PyTorch finds that the memory is on another device
  const Error error = c_api.torch_from_blob(data, axes, sizes, strides, 0, scalar_type(type),
                                            c_api.aoti_torch_device_type_cpu(), kNoIndex, &handle,
                                            c_api.aoti_torch_layout_strided(), nullptr, 0,
                                            release_data, reinterpret_cast<void*>(size));
  if (error != 0) return_buffer(data, size);
  check(error);
  return Tensor(handle);
}

}  // namespace layernorm::torch
