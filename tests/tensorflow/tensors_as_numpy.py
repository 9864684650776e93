"""The TensorFlow front end with the functions of `layernorm.numpy`: the contract's checks take it.

Gradients come from a tape. In graphs, nothing of a shape is known before the graph runs.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from layouts import Array

import layernorm.tensorflow as ours


@dataclass
class Stats:
    call: dict[str, Any]
    bias: Array | None
    mean = rstd = residual = None  # TensorFlow's users do not see them


class AsNumpy:
    """`way`: eager, graph (of unknown shapes), or xla (compiled for each shape)."""

    def __init__(self, way: str) -> None:
        self.way = way

    def layer_norm_forward(self, x: Array, weight=None, bias=None, **options: Any):
        return self._forward(x, weight, bias, centered=True, **options)

    def rms_norm_forward(self, x: Array, weight=None, **options: Any):
        return self._forward(x, weight, None, centered=False, **options)

    def layer_norm_backward(self, dy: Array, x: Array, stats: Stats, weight=None, **options: Any):
        return self._backward(dy, x, stats, weight)

    def rms_norm_backward(self, dy: Array, x: Array, stats: Stats, weight=None, **options: Any):
        return self._backward(dy, x, stats, weight)[:2]

    def _forward(self, x, weight, bias, *, centered, axis=-1, eps=1e-5, zero_centered_weight=False):
        axis = axis if isinstance(axis, int) else tuple(axis)
        call = {"centered": centered, "axis": axis, "eps": eps}
        call["zero_centered_weight"] = zero_centered_weight
        tensors = [to_tensor(each) for each in (x, weight, bias)]
        y = function(forward, self.way, call, tensors)(*tensors)
        return y.numpy(), Stats(call, bias)

    def _backward(self, dy, x, stats, weight):
        call = stats.call
        given = stats.bias if weight is None else weight
        dtype = x.dtype if given is None else given.dtype
        axes = [int(each) % x.ndim for each in np.atleast_1d(call["axis"])]
        shape = [x.shape[each] for each in sorted(axes)]
        # NumPy's backward gives these without parameters too: ones and zeros change no bit of dx.
        if weight is None:
            weight = np.full(shape, 0.0 if call["zero_centered_weight"] else 1.0, dtype)
        bias = np.zeros(shape, dtype) if stats.bias is None else stats.bias
        tensors = [to_tensor(each) for each in (x, weight, bias, dy)]
        gradients = function(backward, self.way, call, tensors)(*tensors)
        return (*(each.numpy() for each in gradients), None)[:3]


def to_tensor(array: Array | None) -> tf.Tensor | None:
    return None if array is None else tf.constant(np.ascontiguousarray(array))


def forward(x, weight, bias, *, centered, **options):
    if centered:
        return ours.layer_norm(x, weight, bias, **options)
    return ours.rms_norm(x, weight, **options)


def backward(x, weight, bias, dy, *, centered, **options):
    wanted = [x, weight, bias] if centered else [x, weight]
    with tf.GradientTape() as tape:
        tape.watch(wanted)
        y = forward(x, weight, bias, centered=centered, **options)
    return tape.gradient(y, wanted, dy)


def function(of, way: str, call: dict[str, Any], tensors) -> Any:
    if way == "eager":
        return functools.partial(of, **call)
    types = tuple(each if each is None else each.dtype for each in tensors)
    return _traced(of, way, tuple(call.items()), types)


@functools.cache
def _traced(of, way: str, call: tuple[tuple[str, Any], ...], types: tuple[Any, ...]) -> Any:
    compiled = functools.partial(of, **dict(call))
    if way == "xla":
        return tf.function(compiled, jit_compile=True)
    there = [dtype for dtype in types if dtype is not None]

    def traced(*given: tf.Tensor) -> Any:
        values = iter(given)
        return compiled(*(None if dtype is None else next(values) for dtype in types))

    graph = tf.function(traced, input_signature=[tf.TensorSpec(None, dtype) for dtype in there])
    return lambda *tensors: graph(*(each for each in tensors if each is not None))
