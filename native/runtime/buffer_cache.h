// Memory of large arrays, kept when they are freed and given to the next of about their size: a
// loop then has the system make its pages once, which costs more than the normalization itself.
#pragma once

#include <cstddef>

namespace layernorm {

// Arrays of fewer bytes are better served by malloc, which keeps theirs as well. From about
// here on it may give back the end of its heap each time, and take it again.
constexpr size_t kCachedFrom = size_t{1} << 20;

// Null where there is none. Asks for huge pages where the system has them.
void* take_buffer(size_t bytes);

// Of take_buffer, at least `bytes` long. Kept while no more than LAYERNORM_KEEP_BYTES are, 128 MiB
// by default; the longest unused go first.
void return_buffer(void* memory, size_t bytes);

}  // namespace layernorm
