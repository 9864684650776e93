// Memory of new tensors. That of large ones comes from the buffer cache (buffer_cache.h); PyTorch
// cannot resize the storage of a tensor in such memory.
#pragma once

#include "dlpack.h"
#include "runtime/buffer_cache.h"
#include "tensor.h"

namespace layernorm::torch {

inline bool is_large(int64_t bytes) { return static_cast<size_t>(bytes) >= kCachedFrom; }

// New memory for a tensor of the same sizes and type, contiguous, that PyTorch takes over; null
// if memory runs out.
dlpack::ManagedTensor* managed_like(const View& like);

// For a tensor that is_large(). PyTorch's own memory, with a request for huge pages, before PyTorch
// 2.11, which takes no other.
Tensor large_empty(int64_t axes, const int64_t* sizes, const int64_t* strides, DataType type,
                   int64_t bytes);

}  // namespace layernorm::torch
