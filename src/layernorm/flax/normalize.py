"""The call of all four classes: Flax's types, axes and masks, computed by our functions."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from jax import Array

from layernorm import jax as functions
from layernorm import spec
from layernorm.jax.beside import Beside


class Settings(NamedTuple):
    """A module's settings, under Flax's names; and whether it is layer norm."""

    epsilon: float
    dtype: Any
    reduction_axes: Any
    feature_axes: Any
    axis_name: str | tuple[str, ...] | None
    axis_index_groups: Any
    centered: bool


def settings_of(module: Any, *, centered: bool) -> Settings:
    """Read the settings of a Flax module."""
    read = {name: getattr(module, name) for name in Settings._fields[:-1]}
    return Settings(**read, centered=centered)


def axes_of(axes: Any, dims: int) -> tuple[int, ...]:
    """Return the axes sorted, none negative."""
    given = axes if isinstance(axes, Iterable) else (axes,)
    return tuple(sorted({axis + dims if axis < 0 else axis for axis in given}))


def is_served(x: Any, settings: Settings) -> bool:
    """Tell whether our functions take the call: real numbers, a constant epsilon, and axes."""
    types = [jnp.result_type(x), *([] if settings.dtype is None else [settings.dtype])]
    return (
        not any(map(_is_complex, types))
        and not isinstance(settings.epsilon, jax.core.Tracer)
        and spec.is_eps(settings.epsilon)
        and axes_of(settings.reduction_axes, jnp.ndim(x)) != ()
    )


def _is_complex(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.complexfloating))


def normalize(
    x: Any,
    scale: Array | None,
    bias: Array | None,
    mask: Any,
    settings: Settings,
    beside: Beside,
) -> Any:
    """Return y, in the type that Flax's rules give; with a residual (y, total)."""
    x = jnp.asarray(x)
    out_type = canonicalize_dtype(x, scale, bias, dtype=settings.dtype)
    axes = axes_of(settings.reduction_axes, x.ndim)
    features = axes_of(settings.feature_axes, x.ndim)
    moments = mask is not None or not _are_whole_or_split(settings)
    alike = (features == axes and not _is_complex(out_type)) or (scale is None and bias is None)
    rounded = beside.residual is not None and x.dtype != out_type
    if not beside.is_nothing and (moments or not alike or rounded):
        wide = settings._replace(dtype=jnp.promote_types(out_type, jnp.float32))
        return beside.around(
            lambda u: normalize(u, scale, bias, mask, wide, Beside()), x, dtype=out_type
        )
    if moments:
        xhat = _of_moments(_widened(x), axes, mask, settings)
    elif alike:
        sizes = [x.shape[axis] for axis in axes]
        if x.dtype != out_type or x.dtype.itemsize > 2:
            x = _widened(x)
        scale, bias = (_parameter(each, x, sizes) for each in (scale, bias))
        y = _norm(x, scale, bias, axes, settings, beside)
        return y if beside.residual is not None else y.astype(out_type)
    else:
        xhat = _norm(_widened(x), None, None, axes, settings, beside)
    sizes = [size if axis in features else 1 for axis, size in enumerate(x.shape)]
    y = xhat if scale is None else xhat * scale.reshape(sizes)
    y = y if bias is None else y + bias.reshape(sizes)
    return y.astype(out_type)


def _are_whole_or_split(settings: Settings) -> bool:
    """Tell whether our functions take the rows: whole, or in parts over axes of a mesh."""
    names = settings.axis_name
    if names is None:
        return True
    every = names if isinstance(names, tuple) else (names,)
    mapped = jax.sharding.get_abstract_mesh().manual_axes
    return settings.axis_index_groups is None and all(name in mapped for name in every)


def _widened(x: Array) -> Array:
    return x.astype(spec.compute_type(x.dtype.name))


def _parameter(parameter: Array | None, x: Array, sizes: list[int]) -> Array | None:
    if parameter is None:
        return None
    return parameter.reshape(sizes).astype(spec.compute_type(x.dtype.name))


def _norm(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    axes: Any,
    settings: Settings,
    beside: Beside,
) -> Any:
    if beside.gate is not None:
        beside = beside._replace(gate=beside.gate.astype(x.dtype))
    options: dict[str, Any] = {**beside._asdict(), "axis": axes, "eps": settings.epsilon}
    options["axis_name"] = settings.axis_name
    if settings.centered:
        return functions.layer_norm(x, scale, bias, **options)
    return functions.rms_norm(x, scale, **options)


def _of_moments(x: Array, axes: tuple[int, ...], mask: Any, settings: Settings) -> Array:
    """Return xhat where a mask, or a mean over devices, changes the mean and the variance."""
    where = None if mask is None else jnp.asarray(mask, bool)

    def mean(v: Array) -> Array:
        here = v.mean(axes, keepdims=True, where=where)
        if settings.axis_name is None:
            return here
        return jax.lax.pmean(here, settings.axis_name, axis_index_groups=settings.axis_index_groups)

    if settings.centered:
        # Twice: far from 0 the mean is rounded, and the second mean is that rounding error.
        x = x - jax.lax.stop_gradient(mean(x))
        x = x - mean(x)
    return x * jax.lax.rsqrt(mean(x * x) + settings.epsilon)
