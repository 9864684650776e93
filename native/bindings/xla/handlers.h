// The calls that XLA makes: `layernorm_forward` and `layernorm_backward`.
#pragma once

#include "ffi.h"

namespace layernorm::xla {

// x, addend, weight, bias -> y, total, and if there are more results mean, rstd, residual (rstd alone
// for RMS norm). An addend makes total = x + addend a result, and y the norm of that.
Error* forward_handler(Frame* frame);

// dy, dtotal, x, mean, rstd, residual, weight -> dx, dweight, dbias, those that are needed. dtotal,
// where there is one, is added to dx.
Error* backward_handler(Frame* frame);

}  // namespace layernorm::xla
