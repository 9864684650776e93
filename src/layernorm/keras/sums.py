"""x + residual in Keras's operations, and the check of a residual."""

from typing import Any

import keras
from keras import ops

from layernorm import spec


def check_residual(residual: Any, x: Any) -> None:
    """Check that the residual has x's type and shape, as far as they are known.

    Raises: TypeError, ValueError.
    """
    types = (str(keras.backend.standardize_dtype(each.dtype)) for each in (residual, x))
    spec.check_same_type("residual", *types, convert=_convert)
    shape, x_shape = (spec.symbolic_shape(each.shape) for each in (residual, x))
    spec.check_shape("residual", shape, x_shape, of=f"x of shape {x_shape}")


def add(x: Any, residual: Any) -> Any:
    """Return total = x + residual. Raises: as `check_residual` does."""
    check_residual(residual, x)
    return ops.add(x, residual)


def _convert(name: str, type_name: str) -> str:
    return f'keras.ops.cast({name}, "{type_name}")'
