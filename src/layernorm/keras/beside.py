"""A residual and a gate in Keras's operations, and their checks."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from layernorm import spec

_MOST = 800.0  # the sigmoid of -_MOST is 0


def check_as_x(name: str, given: Any, x: Any) -> None:
    """Check that a residual or gate has x's type and shape, as far as they are known.

    Raises: TypeError, ValueError.
    """
    types = (str(keras.backend.standardize_dtype(each.dtype)) for each in (given, x))
    spec.check_same_type(name, *types, convert=_convert)
    shape, x_shape = (spec.symbolic_shape(each.shape) for each in (given, x))
    spec.check_shape(name, shape, x_shape, of=f"x of shape {x_shape}")


def add(x: Any, residual: Any) -> Any:
    """Return total = x + residual. Raises: as `check_as_x` does."""
    check_as_x("residual", residual, x)
    return ops.add(x, residual)


def gated(
    norm: Callable[[Any], Any], x: Any, gate: Any, activation: str, norm_before_gate: bool
) -> Any:
    """Return norm(x) * act(gate), or norm(x * act(gate)), in the compute type, as norm does.

    Raises: as `check_as_x` does; ValueError for the activation.
    """
    check_as_x("gate", gate, x)
    act = _activate(widened(gate), spec.check_activation(activation))
    return norm(widened(x)) * act if norm_before_gate else norm(widened(x) * act)


def widened(x: Any) -> Any:
    """Return x in the compute type."""
    return ops.cast(x, spec.compute_type(keras.backend.standardize_dtype(x.dtype)))


def _activate(z: Any, activation: str) -> Any:
    if activation == "sigmoid":
        return ops.sigmoid(z)
    z = ops.where(z < -_MOST, -_MOST, z)  # silu(-inf) is 0
    return z * ops.sigmoid(z)


def _convert(name: str, type_name: str) -> str:
    return f'keras.ops.cast({name}, "{type_name}")'
