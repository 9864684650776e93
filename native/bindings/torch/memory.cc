#include "memory.h"

#include <algorithm>
#include <cstdlib>

#include "runtime/buffer_cache.h"
#include "runtime/huge_pages.h"

namespace layernorm::torch {
namespace {

constexpr size_t kLine = 64;

// Followed in memory by its sizes and strides, and by the data of a tensor that is not large.
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
  // By size, not by address: malloc may place a large tensor's memory right behind this block.
  if (is_large(static_cast<int64_t>(managed->bytes)))
    return_buffer(managed->tensor.data, managed->bytes);
  std::free(managed);
}

void release_data(void* data, void* bytes) { return_buffer(data, reinterpret_cast<size_t>(bytes)); }

}  // namespace

dlpack::ManagedTensor* managed_like(const View& like) {
  const auto size = static_cast<size_t>(like.bytes());
  const size_t header = sizeof(Managed) + 2 * sizeof(int64_t) * static_cast<size_t>(like.axes);
  void* memory = is_large(like.bytes()) ? take_buffer(size) : nullptr;
  if (is_large(like.bytes()) && !memory) return nullptr;
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
  managed->tensor.device = {dlpack::kCpu, 0};
  managed->tensor.dtype = dlpack::type_of(like.type);
  managed->tensor.ndim = static_cast<int32_t>(like.axes);
  managed->tensor.byte_offset = 0;
  managed->tensor.shape = managed->sizes();
  managed->tensor.strides = managed->sizes() + like.axes;
  managed->tensor.data = memory ? memory : managed->memory_behind();
  std::copy(like.sizes, like.sizes + like.axes, managed->tensor.shape);
  contiguous_strides(like.axes, like.sizes, managed->tensor.strides);
  return managed;
}

Tensor large_empty(int64_t axes, const int64_t* sizes, const int64_t* strides, DataType type,
                   int64_t bytes) {
  const auto size = static_cast<size_t>(bytes);
  void* data = c_api.torch_from_blob ? take_buffer(size) : nullptr;
  if (!data) {
    Tensor result = empty(axes, sizes, strides, type);
    ask_for_huge_pages(result.data(), bytes);
    return result;
  }
  TensorHandle handle = nullptr;
  constexpr int32_t kNoIndex = -1;  // with 0, PyTorch reports memory on another device
  const Error error = c_api.torch_from_blob(data, axes, sizes, strides, 0, scalar_type(type),
                                            c_api.aoti_torch_device_type_cpu(), kNoIndex, &handle,
                                            c_api.aoti_torch_layout_strided(), nullptr, 0,
                                            release_data, reinterpret_cast<void*>(size));
  if (error != 0) return_buffer(data, size);
  check(error);
  return Tensor(handle);
}

}  // namespace layernorm::torch
