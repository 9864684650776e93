"""Norms of JAX arrays that are rounded to 8 bits."""

from typing import Any, SupportsFloat, overload

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from layernorm import spec
from layernorm.jax import arguments
from layernorm.jax.definition import Definition, Quantizing, compute_type
from layernorm.jax.functional import compiled


@overload
def quantized_layer_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    dtype: DTypeLike = "int8",
    scale: None = None,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    zero_centered_weight: bool = False,
) -> tuple[Array, Array]: ...
@overload
def quantized_layer_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    dtype: DTypeLike = "int8",
    scale: ArrayLike,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    zero_centered_weight: bool = False,
) -> Array: ...
def quantized_layer_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    dtype: DTypeLike = "int8",
    scale: ArrayLike | None = None,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    zero_centered_weight: bool = False,
) -> Array | tuple[Array, Array]:
    """Return the layer norm of `x` in 8 bits, and the scale of each row: y is about q * scale.

    q = y / scale, rounded to nearest, ties to even, and saturated, where y is what `layer_norm`
    returns, rounded to x's type. The scale of a row is max|y| / m, where m is the largest number of
    `dtype`, but at least the smallest normal number of the scale's type: so zeros give zeros. A row
    with a NaN has the scale NaN; a NaN becomes 0 in int8, NaN in float8.

    Args:
        x, weight, bias, axis, eps, zero_centered_weight: as in `layer_norm`.
        dtype: of q, a name or a type: int8 (m = 127), float8_e4m3fn (448) or float8_e5m2 (57344).
        scale: a positive number, for all rows: then int8 goes from -128 to 127. Or an array of one;
            what is traced is not checked.
    Returns: (q, scales): q of x's shape; scales of x's shape with the normalized axes kept as
        size 1, float32 (float64 for float64 x). With a given scale q alone. To derivatives, all of
        these are constants.
    Raises: while the call is traced, ValueError for shapes, axes, eps and scale, TypeError for
        types.
    """
    options = {"axis": axis, "eps": eps, "zero_centered_weight": zero_centered_weight}
    return _quantized(x, weight, bias, dtype, scale, centered=True, **options)


@overload
def quantized_rms_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    dtype: DTypeLike = "int8",
    scale: None = None,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    zero_centered_weight: bool = False,
) -> tuple[Array, Array]: ...
@overload
def quantized_rms_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    dtype: DTypeLike = "int8",
    scale: ArrayLike,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    zero_centered_weight: bool = False,
) -> Array: ...
def quantized_rms_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    dtype: DTypeLike = "int8",
    scale: ArrayLike | None = None,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    zero_centered_weight: bool = False,
) -> Array | tuple[Array, Array]:
    """Return the RMS norm of `x` in 8 bits, and the scale of each row, as `quantized_layer_norm`.

    Args: as in `rms_norm` and `quantized_layer_norm`.
    Returns: (q, scales), or with a given scale q.
    Raises: as `quantized_layer_norm` does.
    """
    options = {"axis": axis, "eps": eps, "zero_centered_weight": zero_centered_weight}
    return _quantized(x, weight, None, dtype, scale, centered=False, **options)


def _quantized(
    x: ArrayLike,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    dtype: DTypeLike,
    scale: ArrayLike | None,
    **options: Any,
) -> Array | tuple[Array, Array]:
    x = jax.lax.stop_gradient(arguments.as_array("x", x))
    weight, bias = (
        None if each is None else jax.lax.stop_gradient(arguments.as_array(name, each))
        for name, each in (("weight", weight), ("bias", bias))
    )
    name = spec.check_quantized_type(dtype if isinstance(dtype, str) else jnp.dtype(dtype).name)
    quantizing = Quantizing(name, scale is not None)
    definition = arguments.define(x, weight, bias, quantizing=quantizing, **options)
    if scale is not None:
        scale = jax.lax.stop_gradient(arguments.checked_scale(scale, x))
    if 0 in x.shape:
        return _of_nothing(x, definition)
    q, *scales = compiled(x, None, None, weight, bias, scale, definition)
    return (q, *scales) if scales else q


def _of_nothing(x: Array, definition: Definition) -> Array | tuple[Array, Array]:
    """Return the results without elements: rows of none have the scale of zeros."""
    assert definition.quantizing is not None
    q = jnp.zeros(x.shape, definition.quantizing.dtype)
    if definition.has_scale:
        return q
    dtype = compute_type(x.dtype)
    shape = spec.statistics_shape(x.shape, definition.axes)
    return q, jnp.full(shape, jnp.finfo(dtype).smallest_normal, dtype)
