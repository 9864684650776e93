// Memory of large arrays, kept when they are freed and used again for the next array of about their
// size: a loop then has the system map its pages once, which costs more than the normalization.
#pragma once

#include <cstddef>

namespace layernorm {

// Smaller arrays are left to malloc, which keeps their memory too. From about this size on, it may
// return the end of its heap to the system each time.
constexpr size_t kCachedFrom = size_t{1} << 20;

// Null where memory fails. Asks for huge pages where the system has them.
void* take_buffer(size_t bytes);

// From take_buffer, with the same `bytes`. At most LAYERNORM_KEEP_BYTES are kept, 128 MiB by default;
// the longest unused are freed first.
void return_buffer(void* memory, size_t bytes);

}  // namespace layernorm
