"""What runs in graphs of TensorFlow: a formula as people write it, and `layernorm.tensorflow`."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

if importlib.util.find_spec("triton") is not None:
    import triton  # before TensorFlow: the process crashes where Triton comes second

    assert triton

import tensorflow as tf

from layernorm import tensorflow as front_end
from layernorm.cli.problem import Array, Problem
from layernorm.cli.providers.provider import Call, Provider, Unsupported
from layernorm.tensorflow import operators
from layernorm.tensorflow.arguments import Definition


class TensorFlow(Provider):
    """tf.nn.moments, rsqrt, scale, shift in a tf.function; 16-bit types computed in float32."""

    name: ClassVar[str] = "tensorflow"
    distribution: ClassVar[str] = "tensorflow"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        except RuntimeError:
            if tf.config.threading.get_intra_op_parallelism_threads() != threads:
                raise Unsupported(
                    "TensorFlow takes a number of threads once in a process"
                ) from None

    def function(self, problem: Problem) -> Callable[[Any, Any, Any], Any]:
        """Return y = f(x, weight, bias)."""
        return partial(_formula, axis=problem.axis, eps=problem.eps)

    def forward(self, problem: Problem, *, reuse_output: bool = False) -> Call:
        """Trace the function, and call the graph."""
        self.require(problem, reuse_output=reuse_output, can_reuse=False)
        x, weight, bias, _ = _tensors(problem)
        graph = tf.function(self.function(problem), autograph=False)
        return lambda: graph(x, weight, bias)

    def backward(self, problem: Problem) -> Call:
        """Trace the gradient of a graph whose forward is done: what a tape holds of it."""
        self.require(problem, can_reuse=False)
        *inputs, dy = _tensors(problem)
        graph = tf.function(self.function(problem), autograph=False)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(inputs)
            y = graph(*inputs)
        return lambda: tape.gradient(y, inputs, dy)

    def arrays(self, result: Any) -> tuple[Array, ...]:
        """Copy the tensors out."""
        several = isinstance(result, list | tuple)
        return tuple(each.numpy() for each in (result if several else [result]))


class TensorFlowLayer(TensorFlow):
    """A layer: y in a graph, gradients by a tape around the layer itself.

    Around a graph, the tape adds zeros to dx, and TensorFlow takes subnormal numbers for zero.
    """

    def backward(self, problem: Problem) -> Call:
        """Run what the tape holds."""
        self.require(problem, can_reuse=False)
        *inputs, dy = _tensors(problem)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(inputs)
            y = self.function(problem)(*inputs)
        return lambda: tape.gradient(y, inputs, dy)


class OursTensorFlow(TensorFlow):
    """`layernorm.tensorflow` in a tf.function."""

    name: ClassVar[str] = "layernorm"
    distribution: ClassVar[str] = "layernorm"

    def function(self, problem: Problem) -> Callable[[Any, Any, Any], Any]:
        """Return y = f(x, weight, bias)."""
        return partial(front_end.layer_norm, axis=problem.axis, eps=problem.eps)

    def backward(self, problem: Problem) -> Call:
        """Trace what a tape runs, without the tape's own additions to it."""
        self.require(problem, can_reuse=False)
        x, weight, bias, dy = _tensors(problem)
        definition = Definition((problem.axis,), problem.eps)
        _, statistics = operators.forward(x, [weight], [bias], definition)
        graph = tf.function(
            lambda dy, x, statistics, weight, bias: operators.backward(
                dy, x, statistics, [weight], [bias], definition
            ),
            autograph=False,
        )
        return lambda: graph(dy, x, statistics, weight, bias)


def _formula(x: Any, weight: Any, bias: Any, *, axis: int, eps: float) -> Any:
    wide = tf.cast(x, tf.float64 if x.dtype == tf.float64 else tf.float32)
    mean, variance = tf.nn.moments(wide, [axis], keepdims=True)
    shape = [-1 if each == axis % len(x.shape) else 1 for each in range(len(x.shape))]
    weight, bias = (tf.reshape(tf.cast(each, wide.dtype), shape) for each in (weight, bias))
    return tf.cast((wide - mean) * tf.math.rsqrt(variance + eps) * weight + bias, x.dtype)


def _tensors(problem: Problem) -> tuple[Any, ...]:
    if "tensorflow" not in problem.converted:
        arrays = (problem.x, problem.weight, problem.bias, problem.dy)
        problem.converted["tensorflow"] = tuple(tf.constant(each) for each in arrays)
    converted: tuple[Any, ...] = problem.converted["tensorflow"]
    return converted
