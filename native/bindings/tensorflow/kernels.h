// What TensorFlow runs for our operations: a kernel object for each node, and its work.
#pragma once

#include "c_api.h"

namespace layernorm::tensorflow {

void* create_kernel(KernelConstruction* construction);
void* create_gated_kernel(KernelConstruction* construction);
void* create_quantized_kernel(KernelConstruction* construction);
void delete_kernel(void* kernel);

// Inputs: x, weight, bias. Outputs: y, statistics.
void compute_norm(void* kernel, KernelContext* context);
// Inputs: x, residual, weight, bias. Outputs: y, statistics, total.
void compute_norm_of_sum(void* kernel, KernelContext* context);
// Inputs: x, gate, weight, bias. Outputs: y, statistics.
void compute_gated_norm(void* kernel, KernelContext* context);

// Inputs: x, scale, weight, bias; scale is empty where each row is to have its own. Outputs: q,
// scales, which are empty with a given scale.
void compute_quantized_norm(void* kernel, KernelContext* context);

// Inputs: dy, x, statistics, weight. Outputs: dx, dweight, dbias.
void compute_backward(void* kernel, KernelContext* context);
// Inputs: dy, total, statistics, dtotal, weight. Outputs: dx, dweight, dbias.
void compute_backward_of_sum(void* kernel, KernelContext* context);
// Inputs: dy, x, statistics, gate, weight, bias, which vary along the same axes.
// Outputs: dx, dgate, dweight, dbias.
void compute_gated_backward(void* kernel, KernelContext* context);

// At most as many threads for one operation as TensorFlow's own setting; 0 for no bound.
void bound_threads(int most);

}  // namespace layernorm::tensorflow
