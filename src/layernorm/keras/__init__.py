"""Layer norm and RMS norm for Keras 3, on every backend: layers that replace Keras's own."""

from layernorm.keras.conversion import convert
from layernorm.keras.functional import layer_norm, rms_norm
from layernorm.keras.layers import LayerNormalization, RMSNormalization

__all__ = ["LayerNormalization", "RMSNormalization", "convert", "layer_norm", "rms_norm"]
