// The calls that XLA makes: `layernorm_forward` and `layernorm_backward`.
#pragma once

#include "ffi.h"

namespace layernorm::xla {

// x, addend, gate, weight, bias -> y, total, and if there are more results mean, rstd, residual (rstd
// alone for RMS norm). An addend makes total = x + addend a result, and y the norm of that.
//
// x, weight, bias -> q, scales, or x, weight, bias, scale -> q: y has an 8-bit type.
Error* forward_handler(Frame* frame);

// dy, dtotal, x, gate, mean, rstd, residual, weight, bias -> dx, dweight, dbias, dgate, those that are
// needed. dtotal, where there is one and no gate, is added to dx. The bias is given beside a gate.
Error* backward_handler(Frame* frame);

}  // namespace layernorm::xla
