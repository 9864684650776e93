"""Checks arguments through `layernorm.spec`, and makes of them what the primitives take."""

import functools
from collections.abc import Sequence
from typing import Any, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from layernorm import spec
from layernorm.jax.definition import Definition, Gating, Quantizing, compute_type

AxisNames = str | tuple[str, ...]
Description = tuple[tuple[int, ...], Any]  # an array's shape and type


def convert(name: str, type_name: str) -> str:
    """Return the code that converts an array, for the end of an error message."""
    return f"jnp.asarray({name}, jnp.{type_name})"


def _reshape(name: str, shape: tuple[int, ...]) -> str:
    return f"jnp.asarray({name}).reshape({shape})"


def as_array(name: str, value: ArrayLike) -> Array:
    """Convert what jax.numpy accepts as an array. Raises: TypeError and ValueError."""
    if isinstance(value, Array):
        return value  # traced ones too; jnp.asarray takes 40 Python calls to do the same
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"{name} is of type {type(value).__name__}, of which JAX makes no array ({error}): "
            "pass an array of numbers, or lists of floats of one length"
        ) from error


def widens(x: Array, residual: Array) -> bool:
    """Tell whether x is 16-bit and the residual float32, so that x is to be widened first."""
    return residual.dtype == jnp.float32 and x.dtype in (jnp.float16, jnp.bfloat16)


def checked_like_x(name: str, array: Array, x: Array) -> Array:
    """Check that a residual or a gate has x's shape and type. Raises: TypeError and ValueError."""
    spec.check_same_type(name, str(array.dtype), str(x.dtype), convert=convert)
    spec.check_shape(name, array.shape, x.shape, of=f"x of shape {x.shape}")
    return array


def checked_gate(
    x: Array, gate: ArrayLike | None, activation: str, norm_before_gate: bool
) -> tuple[Array | None, Gating | None]:
    """Check a gate, if there is one, and how it is applied. Raises: TypeError and ValueError."""
    if gate is None:
        return None, None
    checked = checked_like_x("gate", as_array("gate", gate), x)
    return checked, Gating(spec.check_activation(activation), bool(norm_before_gate))


def checked_scale(scale: ArrayLike, x: Array) -> Array:
    """Check a given scale, of which only the shape is known while it is traced.

    Raises: TypeError and ValueError.
    """
    dtype = compute_type(x.dtype)
    if isinstance(scale, jax.core.Tracer):
        return scale.astype(dtype).reshape(()) if scale.size == 1 else spec.check_scale(scale)
    # Explicit transfers, which jax.transfer_guard allows.
    return jax.device_put(np.asarray(spec.check_scale(jax.device_get(scale), x.dtype.name), dtype))


def define(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    *,
    axis: spec.Axis,
    eps: SupportsFloat,
    centered: bool,
    zero_centered_weight: bool,
    gating: Gating | None = None,
    quantizing: Quantizing | None = None,
    axis_name: AxisNames | None = None,
) -> Definition:
    """Check all other arguments, and define the call. Raises: TypeError and ValueError."""
    beside = (gating, quantizing, _checked_names(axis_name))
    definition: tuple[Any, ...] = (axis, eps, centered, bool(zero_centered_weight), *beside)
    # Only these types: for a cache, True and 1.0 are the axis 1.
    checked = _checked_once if type(axis) is int and type(eps) is float else _checked
    return checked((x.shape, x.dtype), _described(weight), _described(bias), *definition)


def _checked_names(axis_name: AxisNames | None) -> tuple[str, ...]:
    names = () if axis_name is None else axis_name if isinstance(axis_name, tuple) else (axis_name,)
    mapped = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    if not all(name in mapped for name in names):
        raise ValueError(
            f"axis_name is {axis_name!r}, but the call is mapped over the axes {mapped} of a mesh: "
            "make it in a function that jax.shard_map maps over the named axes; under jax.vmap, "
            "where no device has a part of a row, normalize over the axis itself"
        )
    return names


def _described(parameter: Array | None) -> Description | None:
    return None if parameter is None else (parameter.shape, parameter.dtype)


def _checked(
    x: Description,
    weight: Description | None,
    bias: Description | None,
    axis: spec.Axis,
    eps: SupportsFloat,
    centered: bool,
    zero_centered_weight: bool,
    gating: Gating | None,
    quantizing: Quantizing | None,
    across: tuple[str, ...],
) -> Definition:
    shape, dtype = x
    if isinstance(eps, jax.core.Tracer):
        raise TypeError(
            "eps is traced, expected a number that is known while the call is traced: pass a "
            "Python float, or name it in static_argnames of jax.jit"
        )
    types = [None if each is None else str(each[1]) for each in (weight, bias)]
    spec.check_types(str(dtype), *types, convert=convert)
    axes = spec.normalize_axes(axis, len(shape))
    varying: set[int] = set()
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            own = spec.check_parameter(name, parameter[0], shape, axes, reshape=_reshape)
            varying.update(own)
    eps = spec.check_eps(eps)
    own = tuple(sorted(varying))
    return Definition(axes, eps, centered, zero_centered_weight, own, gating, quantizing, across)


_checked_once = functools.lru_cache(maxsize=1024)(_checked)


@functools.lru_cache(maxsize=1024)
def order_of(shape: Any, definition: Definition) -> tuple[int, ...]:
    """Return an order of x's axes that the kernels take: x's own, or the normalized axes last."""
    own = tuple(range(len(shape)))
    kept = definition.kept(len(shape))
    apart = definition.varying + definition.summed(len(shape))
    orders = (own, kept + definition.axes, apart + definition.axes)
    return next(
        order
        for order in orders
        if definition.moved(order).is_read_in_place(tuple(shape[axis] for axis in order))
    )


def compact_parameters(
    x: Array, parameters: Sequence[Array | None], definition: Definition
) -> list[Array | None]:
    """Give weight and bias the axes that they have in the primitives, and no others.

    One that does not vary along an axis where the other does is repeated. Its gradient is the sum
    of those of the repeats, so both are widened first: the sum is rounded once.
    """
    spread = [each if each is None else _spread(each, x, definition.axes) for each in parameters]
    shape = spec.parameter_shape(x.shape, definition.axes, definition.varying)
    if any(each is not None and each.shape != shape for each in spread):
        dtype = compute_type(x.dtype)
        spread = [
            each if each is None else jnp.broadcast_to(each.astype(dtype), shape) for each in spread
        ]
    return [each if each is None else definition.compact(each) for each in spread]


def _spread(parameter: Array, x: Array, axes: tuple[int, ...]) -> Array:
    """Give a parameter all axes of x."""
    if parameter.shape == spec.normalized_shape(x.shape, axes):
        missing = tuple(axis for axis in range(x.ndim) if axis not in axes)
    else:
        missing = tuple(range(x.ndim - parameter.ndim))
    return jnp.expand_dims(parameter, missing)


def vary_alike(arrays: Sequence[Array | None]) -> list[Array | None]:
    """Within jax.shard_map, have each array vary along all mesh axes that any of them varies along.

    So the gradients of parameters that all devices share are added up.
    """
    own = [frozenset() if each is None else _varying(each) for each in arrays]
    names = frozenset[str]().union(*own)
    return [
        each if each is None or mine == names else _vary(each, tuple(sorted(names - mine)))
        for each, mine in zip(arrays, own, strict=True)
    ]


def _varying(x: Array) -> frozenset[str]:
    aval = jax.typeof(x)
    if hasattr(aval, "manual_axis_type"):
        return frozenset(aval.manual_axis_type.varying)
    return frozenset(aval.vma)  # before JAX 0.10


def _vary(x: Array, names: tuple[str, ...]) -> Array:
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, names, to="varying")
    return jax.lax.pvary(x, names)
