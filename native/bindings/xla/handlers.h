// The calls that XLA makes: `layernorm_forward` and `layernorm_backward`.
#pragma once

#include "ffi.h"

namespace layernorm::xla {

// x, weight, bias -> y, and if there are more results mean, rstd, residual (rstd alone for RMS
// norm).
Error* forward_handler(Frame* frame);

// dy, x, mean, rstd, residual, weight -> dx, dweight, dbias, those that are needed.
Error* backward_handler(Frame* frame);

}  // namespace layernorm::xla
