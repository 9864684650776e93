"""Layer norm and RMS norm for PyTorch: in place of its own functions and modules."""

from layernorm.torch.accelerated import accelerate
from layernorm.torch.conversion.convert import convert
from layernorm.torch.functional import layer_norm, rms_norm
from layernorm.torch.inspection.inspect import inspect
from layernorm.torch.layers import LayerNorm, RMSNorm
from layernorm.torch.quantized import quantized_layer_norm, quantized_rms_norm

__all__ = [
    "LayerNorm",
    "RMSNorm",
    "accelerate",
    "convert",
    "inspect",
    "layer_norm",
    "quantized_layer_norm",
    "quantized_rms_norm",
    "rms_norm",
]
