"""Gradients and arrays of whatever backend Keras runs on."""

import keras
import ml_dtypes
import numpy as np

BACKEND = keras.backend.backend()


def to_tensor(array):
    if array is None or BACKEND == "numpy":  # Keras makes a float64 array float32 there
        return array
    if BACKEND == "torch" and array.dtype == ml_dtypes.bfloat16:
        import torch

        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return keras.ops.convert_to_tensor(array)


def to_array(tensor) -> np.ndarray:
    if BACKEND == "torch" and str(tensor.dtype) == "torch.bfloat16":
        import torch

        return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(tensor.detach() if BACKEND == "torch" else tensor)


def gradients(function, arguments, dy):
    """Return the gradients of function(*arguments) at dy."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(arguments)
            y = function(*arguments)
        return tape.gradient(y, arguments, dy)
    if BACKEND == "torch":
        import torch

        leaves = [each.detach().requires_grad_() for each in arguments]
        return torch.autograd.grad(function(*leaves), leaves, dy)
    import jax

    return jax.vjp(function, *arguments)[1](dy)
