"""TensorFlow in graphs: a formula as people write it, and `layernorm.tensorflow`."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import tensorflow as tf

from layernorm import tensorflow as front_end
from layernorm.cli.machine import usable_processors
from layernorm.cli.problem import Array, Problem
from layernorm.cli.providers.provider import Call, Provider, Unsupported
from layernorm.tensorflow import operators
from layernorm.tensorflow.arguments import Definition


class TensorFlow(Provider):
    """The formula of the norm in a tf.function; 16-bit types computed in float32."""

    name: ClassVar[str] = "tensorflow"
    distribution: ClassVar[str] = "tensorflow"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        except RuntimeError:
            # 0: as many as there are processors.
            set_before = tf.config.threading.get_intra_op_parallelism_threads()
            if (set_before or usable_processors()) != threads:
                raise Unsupported(
                    "TensorFlow's number of threads can be set once in a process"
                ) from None

    def function(self, problem: Problem) -> Callable[..., Any]:
        """Return y = f(x, *parameters)."""
        formula = _layer_norm if problem.kind == "layer_norm" else _rms_norm
        return partial(formula, axis=problem.axis, eps=problem.eps)

    def forward(self, problem: Problem, *, reuse_output: bool = False) -> Call:
        """Trace the function, and call the graph."""
        self.require(problem, reuse_output=reuse_output, can_reuse=False)
        *inputs, _ = _tensors(problem)
        graph = tf.function(self.function(problem), autograph=False)
        return lambda: graph(*inputs)

    def backward(self, problem: Problem) -> Call:
        """Return the gradients of a tape around the graph, whose forward is done before."""
        self.require(problem, can_reuse=False)
        *inputs, dy = _tensors(problem)
        graph = tf.function(self.function(problem), autograph=False)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(inputs)
            y = graph(*inputs)
        return lambda: tape.gradient(y, inputs, dy)

    def arrays(self, result: Any) -> tuple[Array, ...]:
        """Copy the tensors."""
        several = isinstance(result, list | tuple)
        return tuple(each.numpy() for each in (result if several else [result]))


class TensorFlowLayer(TensorFlow):
    """A layer: y in a graph, gradients by a tape around the layer itself.

    A tape around a graph adds zeros to dx, in which TensorFlow flushes subnormal numbers to zero.
    """

    def backward(self, problem: Problem) -> Call:
        """Return the gradients of a tape, around the layer."""
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

    def function(self, problem: Problem) -> Callable[..., Any]:
        """Return y = f(x, *parameters)."""
        return partial(getattr(front_end, problem.kind), axis=problem.axis, eps=problem.eps)

    def backward(self, problem: Problem) -> Call:
        """Trace the operator that a tape runs, without what the tape adds."""
        self.require(problem, can_reuse=False)
        x, weight, *bias, dy = _tensors(problem)
        definition = Definition((problem.axis,), problem.eps, problem.kind == "layer_norm")
        norm = self.function(problem)
        forward = tf.function(lambda *inputs: norm(*inputs).op.outputs, autograph=False)
        _, statistics = forward(x, weight, *bias)
        graph = tf.function(
            lambda dy, x, statistics, weight, bias: operators.backward(
                dy, x, statistics, [weight], bias, definition
            ),
            autograph=False,
        )
        return lambda: graph(dy, x, statistics, weight, bias)


def _layer_norm(x: Any, weight: Any, bias: Any, *, axis: int, eps: float) -> Any:
    widened = tf.cast(x, tf.float64 if x.dtype == tf.float64 else tf.float32)
    mean, variance = tf.nn.moments(widened, [axis], keepdims=True)
    weight, bias = (_along(each, widened, axis) for each in (weight, bias))
    return tf.cast((widened - mean) * tf.math.rsqrt(variance + eps) * weight + bias, x.dtype)


def _rms_norm(x: Any, weight: Any, *, axis: int, eps: float) -> Any:
    widened = tf.cast(x, tf.float64 if x.dtype == tf.float64 else tf.float32)
    mean_square = tf.reduce_mean(tf.square(widened), axis, keepdims=True)
    rstd = tf.math.rsqrt(mean_square + eps)
    return tf.cast(widened * rstd * _along(weight, widened, axis), x.dtype)


def _along(parameter: Any, x: Any, axis: int) -> Any:
    shape = [-1 if each == axis % len(x.shape) else 1 for each in range(len(x.shape))]
    return tf.reshape(tf.cast(parameter, x.dtype), shape)


def _tensors(problem: Problem) -> tuple[Any, ...]:
    return problem.arrays_of("tensorflow", tf.constant)
