// Memory of fresh tensors. That of large ones outlives them, and serves the next of their size
// (buffer_cache.h). Where it is ours, PyTorch cannot resize their storage.
#pragma once

#include "dlpack.h"
#include "runtime/buffer_cache.h"
#include "tensor.h"

namespace layernorm::torch {

inline bool is_large(int64_t bytes) { return static_cast<size_t>(bytes) >= kCachedFrom; }

// A tensor's sizes and type with fresh memory of that many bytes, for PyTorch to take over; null
// where there is no memory.
dlpack::ManagedTensor* managed_like(const dlpack::Tensor& like, int64_t bytes);

// Of at least kCachedFrom bytes. PyTorch's own memory, with a request for huge pages, where it takes
// no other (before 2.11).
Tensor large_empty(int64_t axes, const int64_t* sizes, const int64_t* strides, DataType type,
                   int64_t bytes);

}  // namespace layernorm::torch
