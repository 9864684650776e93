"""Checks arguments through `layernorm.spec`, and orders the axes as the kernels take them."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from layernorm import spec


def convert(name: str, type_name: str) -> str:
    """Write how a user of JAX converts an array: the last words of an error."""
    return f"{name}.astype(jnp.{type_name})"


def as_array(name: str, value: ArrayLike) -> Array:
    """Take what jax.numpy takes for an array. Raises: TypeError."""
    try:
        return jnp.asarray(value)
    except TypeError as error:
        raise TypeError(
            f"{name} is of type {type(value).__name__}, expected an array: pass jnp.asarray({name})"
        ) from error


def check(x: Array, weight: Array | None, bias: Array | None, axis: spec.Axis) -> tuple[int, ...]:
    """Check types and shapes; return the normalized axes. Raises: TypeError and ValueError."""
    parameters = {"weight": weight, "bias": bias}
    types = [None if each is None else str(each.dtype) for each in parameters.values()]
    spec.check_types(str(x.dtype), *types, convert=convert)
    axes = spec.normalize_axes(axis, x.ndim)
    for name, given in parameters.items():
        if given is not None:
            spec.check_parameter(name, given.shape, x.shape, axes)
    return axes


@functools.lru_cache(maxsize=1024)
def order_of(shape: Any, axes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Order the axes so that x collapses to (outer, cols, inner); None if it does as it is."""
    if spec.layout_of(shape, axes) is not None:
        return None
    return tuple(axis for axis in range(len(shape)) if axis not in axes) + axes


def vary_alike(arrays: Sequence[Array | None]) -> list[Array | None]:
    """Within jax.shard_map, have each vary along all axes of the mesh that one of them does.

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
