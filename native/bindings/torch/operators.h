// Our operators, and PyTorch's own two that accelerate() replaces, as boxed kernels.
#pragma once

namespace layernorm::torch {

// Defines layernorm::layer_norm and the others, with their kernels for the CPU. Once, after
// load_c_api(). False where PyTorch refuses.
bool define_operators();

// Puts our kernels under aten::native_layer_norm and native_layer_norm_backward on the CPU, or
// takes them away again. False where PyTorch refuses.
bool override_aten();
bool restore_aten();

}  // namespace layernorm::torch
