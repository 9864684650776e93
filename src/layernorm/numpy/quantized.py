"""Layer norm and RMS norm of NumPy arrays, rounded to 8 bits."""

import importlib
from typing import Any, SupportsFloat, overload

import numpy as np
import numpy.typing as npt

from layernorm import _native, spec
from layernorm.numpy import arrays
from layernorm.numpy.arrays import Array
from layernorm.numpy.forward import checked


@overload
def quantized_layer_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    dtype: npt.DTypeLike = "int8",
    scale: None = None,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    zero_centered_weight: bool = False,
) -> tuple[Array, Array]: ...
@overload
def quantized_layer_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    dtype: npt.DTypeLike = "int8",
    scale: SupportsFloat,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    zero_centered_weight: bool = False,
) -> Array: ...
def quantized_layer_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    dtype: npt.DTypeLike = "int8",
    scale: SupportsFloat | None = None,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    zero_centered_weight: bool = False,
) -> Array | tuple[Array, Array]:
    """Return the layer norm of `x` in 8 bits, and the scale of each row: y is about q * scale.

    q = y / scale, rounded to nearest, ties to even, and saturated, where y is what `layer_norm`
    returns, rounded to x's type. The scale of a row is max|y| / m, where m is the largest number of
    `dtype`, but at least the smallest normal number of the scale's type: so zeros give zeros. A row
    with a NaN has the scale NaN; a NaN becomes 0 in int8, NaN in float8. There is no gradient.

    Args:
        x, weight, bias, axis, eps, zero_centered_weight: as in `layer_norm`.
        dtype: of q: int8 (m = 127), or of ml_dtypes float8_e4m3fn (448) or float8_e5m2 (57344).
        scale: a positive number, for all rows: then int8 goes from -128 to 127.
    Returns: (q, scales): q C-contiguous, of x's shape; scales of x's shape with the normalized axes
        kept as size 1, float32 (float64 for float64 x). With a given scale q alone.
    Raises: ValueError for shapes, axes, eps and scale; TypeError for types.
    """
    q, scales = _quantized(x, weight, bias, axis, eps, True, zero_centered_weight, dtype, scale)
    return q if scales is None else (q, scales)


@overload
def quantized_rms_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    dtype: npt.DTypeLike = "int8",
    scale: None = None,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    zero_centered_weight: bool = False,
) -> tuple[Array, Array]: ...
@overload
def quantized_rms_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    dtype: npt.DTypeLike = "int8",
    scale: SupportsFloat,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    zero_centered_weight: bool = False,
) -> Array: ...
def quantized_rms_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    dtype: npt.DTypeLike = "int8",
    scale: SupportsFloat | None = None,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    zero_centered_weight: bool = False,
) -> Array | tuple[Array, Array]:
    """Return the RMS norm of `x` in 8 bits, and the scale of each row, as `quantized_layer_norm`.

    Args: as in `rms_norm` and `quantized_layer_norm`.
    Returns: (q, scales), or with a given scale q.
    Raises: as `quantized_layer_norm` does.
    """
    q, scales = _quantized(x, weight, None, axis, eps, False, zero_centered_weight, dtype, scale)
    return q if scales is None else (q, scales)


def _quantized(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    axis: spec.Axis,
    eps: SupportsFloat,
    centered: bool,
    zero_centered_weight: bool,
    dtype: npt.DTypeLike,
    scale: SupportsFloat | None,
) -> tuple[Array, Array | None]:
    """Return q, and the scales of the rows, or None with a given scale."""
    call = checked(x, weight, bias, axis, eps, None, centered, zero_centered_weight)
    q_type = _quantized_type(dtype)
    compute = arrays.compute_type(call.x.dtype)
    given = None if scale is None else np.array(spec.check_scale(scale, compute.name), compute)
    q = _native.empty(call.x.shape, q_type)
    scales = None
    if given is None:
        # Rows that are empty have the scale of zeros.
        shape = arrays.statistics_shape(call.x.shape, call.axes)
        scales = np.full(shape, np.finfo(compute).smallest_normal)
    if call.x.size:
        call.quantize(q.view(np.int8), q_type.name, scales, given)
    return q, scales


def _quantized_type(dtype: npt.DTypeLike) -> np.dtype[Any]:
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    if spec.check_quantized_type(name) == "int8":
        return np.dtype(np.int8)
    float8: np.dtype[Any] = np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
    return float8
