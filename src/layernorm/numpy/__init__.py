"""Layer norm and RMS norm for NumPy: functions, layers with a backward, and optimizers."""

from layernorm.numpy.functional import (
    layer_norm,
    layer_norm_backward,
    layer_norm_forward,
    rms_norm,
    rms_norm_backward,
    rms_norm_forward,
)
from layernorm.numpy.layers import LayerNorm, Parameter, RMSNorm
from layernorm.numpy.optimizers import SGD, Adam
from layernorm.numpy.quantized import quantized_layer_norm, quantized_rms_norm
from layernorm.numpy.statistics import Stats

__all__ = [
    "SGD",
    "Adam",
    "LayerNorm",
    "Parameter",
    "RMSNorm",
    "Stats",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "quantized_layer_norm",
    "quantized_rms_norm",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
]
