// Memory of large outputs, which outlives them and serves the next of their size (kept_memory.h).
#pragma once

#include "dlpack.h"
#include "torch_tensor.h"

namespace layernorm::torch {

// From here on malloc gives the memory of an output back to the system, or the system's pages for
// it cost more than the kernel's own work.
constexpr int64_t kLargeBytes = int64_t{1} << 20;

inline bool is_large(int64_t bytes) { return bytes >= kLargeBytes; }

// Fresh tensors of at least kLargeBytes whose memory is kept when they are gone. Their storage
// cannot be resized.

// For PyTorch to take over; null where there is no memory.
dlpack::ManagedTensor* large_managed_like(const dlpack::Tensor& like, int64_t bytes);

// PyTorch's own memory, with a request for huge pages, where it takes no other (before 2.11).
Tensor large_empty(int64_t axes, const int64_t* sizes, const int64_t* strides, DataType type,
                   int64_t bytes);

}  // namespace layernorm::torch
