"""Layer normalization that is right, fast and the same everywhere."""

from layernorm._native import get_num_threads, set_num_threads
from layernorm._version import __version__
from layernorm.dispatch import layer_norm, quantized_layer_norm, quantized_rms_norm, rms_norm

__all__ = [
    "__version__",
    "get_num_threads",
    "layer_norm",
    "quantized_layer_norm",
    "quantized_rms_norm",
    "rms_norm",
    "set_num_threads",
]
