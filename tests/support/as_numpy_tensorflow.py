"""The TensorFlow front end behind the functions of `layernorm.numpy`, for the contract's checks.

Gradients come from a tape. In graphs, shapes are unknown until the graph runs.
"""

import atexit
import functools
import gc
from typing import Any

import tensorflow as tf
from adapter import Adapter, Stats, parameters
from layouts import Array, dense

import layernorm.tensorflow as ours

gc.freeze()  # what was imported is no garbage, and graphs make Python look for some all the time
atexit.register(gc.unfreeze)  # or nanobind tells of leaks at exit
gc.set_threshold(100_000)

# For derivatives, whose tests AutoGraph takes long to rewrite. Results are tested with it.
PLAIN_WAYS = {
    "eager": lambda function: function,
    "graph": functools.partial(tf.function, autograph=False),
}


class AsNumpy(Adapter):
    """`way`: eager, graph (of unknown shapes), or xla (compiled for each shape)."""

    def __init__(self, way: str) -> None:
        self.way = way

    def _forward(self, x, weight, bias, *, centered, axis=-1, eps=1e-5, zero_centered_weight=False):
        axis = axis if isinstance(axis, int) else tuple(axis)
        call = {"centered": centered, "axis": axis, "eps": eps}
        call["zero_centered_weight"] = zero_centered_weight
        tensors = [to_tensor(each) for each in (x, weight, bias)]
        y = function(forward, self.way, call, tensors)(*tensors)
        return y.numpy(), Stats(call, bias)

    def quantized_layer_norm(self, x, weight=None, bias=None, **options):
        return self._quantized(x, weight, bias, centered=True, **options)

    def quantized_rms_norm(self, x, weight=None, **options):
        return self._quantized(x, weight, None, centered=False, **options)

    def _quantized(self, x, weight, bias, **call):
        tensors = [to_tensor(each) for each in (x, weight, bias)]
        results = function(quantized, self.way, call, tensors)(*tensors)
        return tf.nest.map_structure(lambda each: each.numpy(), results)

    def _backward(self, dy, x, stats, weight):
        call = stats.call
        given = (x, *parameters(x, weight, stats.bias, **call), dy)
        tensors = [to_tensor(each) for each in given]
        gradients = function(backward, self.way, call, tensors)(*tensors)
        return (*(each.numpy() for each in gradients), None)[:3]


def to_tensor(array: Array | None) -> tf.Tensor | None:
    return None if array is None else tf.constant(dense(array))


def forward(x, weight, bias, *, centered, **options):
    if centered:
        return ours.layer_norm(x, weight, bias, **options)
    return ours.rms_norm(x, weight, **options)


def quantized(x, weight, bias, *, centered, **options):
    if centered:
        return ours.quantized_layer_norm(x, weight, bias, **options)
    return ours.quantized_rms_norm(x, weight, **options)


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
