// XLA's threads as a kernel's callback.
#pragma once

#include "ffi.h"
#include "layer_norm.h"

namespace layernorm::xla {

// The threads of the execution that this frame belongs to; the caller's alone if XLA has none. The
// frame must outlive the work.
Threads threads_of(const Frame& frame);

}  // namespace layernorm::xla
