"""Layer norm and RMS norm for Keras 3, on every backend: layers that replace Keras's own."""

from layernorm.keras.conversion import convert
from layernorm.keras.functional import layer_norm, rms_norm
from layernorm.keras.inspection.inspect import inspect
from layernorm.keras.layers import LayerNormalization, RMSNormalization
from layernorm.keras.quantized import quantized_layer_norm, quantized_rms_norm

__all__ = [
    "LayerNormalization",
    "RMSNormalization",
    "convert",
    "inspect",
    "layer_norm",
    "quantized_layer_norm",
    "quantized_rms_norm",
    "rms_norm",
]
