"""Our layer, and our function for TensorFlow, beside Keras's and a formula, on Keras's TensorFlow.

    python benchmarks/keras_layers.py [--samples 30]

Medians in microseconds; the calls of a line are timed in turns, in one process.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

import layernorm.keras as ours
import layernorm.tensorflow as front_end
from layernorm.cli.problem import ordinary_arrays

SHAPES = ((512, 768), (8192, 1024))
Function = Callable[..., Any]


def formula(x: Any, weight: Any, bias: Any) -> Any:
    widened = tf.cast(x, tf.float32)
    mean, variance = tf.nn.moments(widened, -1, keepdims=True)
    xhat = (widened - mean) * tf.math.rsqrt(variance + 1e-5)
    return tf.cast(xhat * tf.cast(weight, tf.float32) + tf.cast(bias, tf.float32), x.dtype)


def with_gradients(function: Function, dy: Any, variables: Sequence[Any] = ()) -> Function:
    def call(*given: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(given)
            y = function(*given)
        return tape.gradient(y, [*given, *variables], dy)

    return call


def medians(calls: dict[str, Function], samples: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for sample in range(-2, samples):
        for name, call in calls.items():
            start = time.perf_counter()
            call()  # on the CPU, TensorFlow returns when the work is done
            if sample >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) * 1e6 for name, each in times.items()}


def layers(shape: tuple[int, int], dtype: str) -> dict[str, dict[str, Function]]:
    x, *_, dy = (tf.cast(each, dtype) for each in ordinary_arrays(tf.random.normal, shape))
    policy = "float32" if dtype == "float32" else f"mixed_{dtype}"
    rows: dict[str, dict[str, Function]] = {}
    for name, kind in (
        ("ours", ours.LayerNormalization),
        ("keras", keras.layers.LayerNormalization),
    ):
        layer = kind(dtype=policy)
        layer.build(shape)
        backward = with_gradients(layer, dy, [each.value for each in layer.weights])
        for what, function in (("forward", layer), ("forward+backward", backward)):
            graph = tf.function(function, autograph=False)
            compiled = tf.function(function, autograph=False, jit_compile=True)
            for way, call in (("eager", function), ("graph", graph), ("XLA", compiled)):
                rows.setdefault(f"layer {way} {what}", {})[name] = partial(call, x)
    return rows


def functions(shape: tuple[int, int], dtype: str) -> dict[str, dict[str, Function]]:
    arrays = ordinary_arrays(tf.random.normal, shape)
    x, weight, bias, dy = (tf.cast(each, dtype) for each in arrays)
    rows: dict[str, dict[str, Function]] = {}
    for name, function in (("ours", front_end.layer_norm), ("formula", formula)):
        backward = with_gradients(function, dy)
        for what, each in (("forward", function), ("forward+backward", backward)):
            graph = tf.function(each, autograph=False)
            rows.setdefault(f"function graph {what}", {})[name] = partial(graph, x, weight, bias)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=30)
    samples = parser.parse_args().samples
    for dtype in ("float32", "bfloat16"):
        for shape in SHAPES:
            for what, calls in (layers(shape, dtype) | functions(shape, dtype)).items():
                times = medians(calls, samples)
                mine, theirs = times.values()
                words = ", ".join(f"{name} {each:,.0f}" for name, each in times.items())
                label = f"{dtype} {shape[0]}x{shape[1]} {what}"
                print(f"{label}: {words}: {theirs / mine:.2f}x", flush=True)


if __name__ == "__main__":
    main()
