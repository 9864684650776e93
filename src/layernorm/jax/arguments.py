"""Checks arguments through `layernorm.spec`, and orders the axes as the kernels take them."""

import functools
from collections.abc import Sequence
from typing import Any, SupportsFloat

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from layernorm import spec
from layernorm.jax.definition import Definition

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


def define(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    *,
    axis: spec.Axis,
    eps: SupportsFloat,
    centered: bool,
    zero_centered_weight: bool,
) -> Definition:
    """Check all arguments, and define the call. Raises: TypeError and ValueError."""
    definition: tuple[Any, ...] = (axis, eps, centered, bool(zero_centered_weight))
    # Only these types: for a cache, True and 1.0 are the axis 1.
    checked = _checked_once if type(axis) is int and type(eps) is float else _checked
    return checked((x.shape, x.dtype), _described(weight), _described(bias), *definition)


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
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            spec.check_parameter(name, parameter[0], shape, axes, reshape=_reshape)
    return Definition(axes, spec.check_eps(eps), centered, zero_centered_weight)


_checked_once = functools.lru_cache(maxsize=1024)(_checked)


@functools.lru_cache(maxsize=1024)
def order_of(shape: Any, axes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Order the axes so that x collapses to (outer, cols, inner); None if it does as it is."""
    if spec.layout_of(shape, axes) is not None:
        return None
    return tuple(axis for axis in range(len(shape)) if axis not in axes) + axes


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
