"""What differs between Keras's backends: gradients, compilation, arrays."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

BACKEND = keras.backend.backend()


def gradients_of(
    function: Callable[..., Any], given: Sequence[Any], dys: Sequence[Any]
) -> list[Any]:
    """Return the gradients of the arguments of a function that returns a list."""
    framework = importlib.import_module(BACKEND)
    if BACKEND == "jax":
        return list(framework.vjp(function, *given)[1](list(dys)))
    if BACKEND == "tensorflow":
        given = [framework.convert_to_tensor(each) for each in given]
        with framework.GradientTape() as tape:
            tape.watch(given)
            results = function(*given)
        return list(tape.gradient(results, given, output_gradients=list(dys)))
    leaves = [each.detach().requires_grad_() for each in given]
    with framework.enable_grad():
        results = function(*leaves)
    with_graph = [(y, dy) for y, dy in zip(results, dys, strict=True) if y.requires_grad]
    if not with_graph or not leaves:
        return [None] * len(leaves)
    results, dys = zip(*with_graph, strict=True)
    return list(framework.autograd.grad(results, leaves, dys, allow_unused=True))


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Give the norms numbers, not tracers, and have no function of the model traced."""
    if BACKEND == "jax":
        with importlib.import_module("jax").disable_jit():
            yield
    elif BACKEND == "tensorflow":
        settings = importlib.import_module("tensorflow").config
        before = settings.functions_run_eagerly()
        settings.run_functions_eagerly(True)
        try:
            yield
        finally:
            settings.run_functions_eagerly(before)
    else:
        yield


def compiled(function: Any, needs_gradients: bool) -> Any:
    """Return the function as `predict` would run it."""
    if BACKEND == "jax":
        # Of the same function, JAX would run what it has traced with other layers.
        return importlib.import_module("jax").jit(lambda *given: function(*given))
    if BACKEND == "tensorflow":
        return importlib.import_module("tensorflow").function(function, autograph=False)
    if BACKEND == "torch" and not needs_gradients:
        return importlib.import_module("torch").no_grad()(function)
    return function


def finished(results: Any) -> Any:
    """Wait for the results."""
    if BACKEND == "jax":
        importlib.import_module("jax").block_until_ready(results)
    return results


def to_tensor(given: Any) -> Any:
    """Return a tensor for an array of numbers; any other object itself."""
    kind = getattr(getattr(given, "dtype", None), "kind", "")
    return ops.convert_to_tensor(given) if kind in "biuf" and kind else given


def random_like(given: Any) -> Any:
    """Return normal numbers of the tensor's shape and type, always the same."""
    return ops.cast(keras.random.normal(given.shape, dtype="float32", seed=0), given.dtype)


def is_floating(given: Any) -> bool:
    """Tell a floating-point tensor from the rest."""
    return ops.is_tensor(given) and keras.backend.is_float_dtype(type_of(given))


def type_of(given: Any) -> str:
    """Return the name of the tensor's type."""
    return str(keras.backend.standardize_dtype(given.dtype))


def to_array(given: Any) -> Any:
    """Return the numbers in NumPy."""
    array = ops.convert_to_numpy(given)
    if type_of(given) != "bfloat16" or array.dtype.name == "bfloat16":
        return array
    # PyTorch's have become float32.
    return array.astype(importlib.import_module("ml_dtypes").bfloat16)
