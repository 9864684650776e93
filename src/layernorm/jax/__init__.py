"""Layer norm and RMS norm for JAX: compiled kernels on the CPU, a formula on other devices."""

from layernorm.jax.functional import layer_norm, rms_norm
from layernorm.jax.quantized import quantized_layer_norm, quantized_rms_norm

__all__ = ["layer_norm", "quantized_layer_norm", "quantized_rms_norm", "rms_norm"]
