// Our operators, and the two of PyTorch's that accelerate() replaces.
#pragma once

namespace layernorm::torch {

// Defines layernorm::layer_norm and the others, with their kernels for the CPU. Once a process,
// after load_c_api(). False if PyTorch refuses.
bool define_operators();

// Registers our kernels for aten::native_layer_norm and native_layer_norm_backward on the CPU, or
// removes them again. False if PyTorch refuses.
bool override_aten();
bool restore_aten();

}  // namespace layernorm::torch
