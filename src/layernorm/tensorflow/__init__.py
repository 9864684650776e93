"""Layer norm and RMS norm of TensorFlow's tensors, by the compiled kernels on the CPU."""

from layernorm.tensorflow.functional import (
    layer_norm,
    quantized_layer_norm,
    quantized_rms_norm,
    rms_norm,
)
from layernorm.tensorflow.portability import portable

__all__ = [
    "layer_norm",
    "portable",
    "quantized_layer_norm",
    "quantized_rms_norm",
    "rms_norm",
]
