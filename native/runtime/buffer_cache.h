// Memory of large arrays, kept when they are freed and reused for the next array of about that size.
// Otherwise the system maps new pages each time, which takes longer than the normalization.
#pragma once

#include <cstddef>

namespace layernorm {

// Smaller arrays are left to malloc, which keeps their memory too. From about this size on, it may
// return the end of its heap to the system each time.
constexpr size_t kCachedFrom = size_t{1} << 20;

// Null if memory runs out. Asks for huge pages where the system has them.
void* take_buffer(size_t bytes);

// From take_buffer, with the same `bytes`. At most LAYERNORM_KEEP_BYTES are kept, counted as they were
// asked for (128 MiB by default), in at most 8 buffers; the longest unused are freed first.
void return_buffer(void* memory, size_t bytes);

}  // namespace layernorm
