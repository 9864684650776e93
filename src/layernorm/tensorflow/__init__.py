"""Layer norm and RMS norm of TensorFlow's tensors, by the compiled kernels on the CPU."""

from layernorm.tensorflow.functional import layer_norm, rms_norm

__all__ = ["layer_norm", "rms_norm"]
