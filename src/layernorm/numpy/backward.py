"""The backward for any arrays: checks everything, then finds the kernel a way to x, dy and dx."""

from typing import Any

import numpy as np
import numpy.typing as npt

from layernorm import _native, spec
from layernorm.numpy import arrays
from layernorm.numpy.arrays import Array, View
from layernorm.numpy.blocks import order_of
from layernorm.numpy.statistics import Stats

Gradients = tuple[Array | None, Array | None, Array | None]


def backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    stats: Stats,
    weight: npt.ArrayLike | None,
    *,
    need_dx: bool,
    need_dweight: bool | None,
    need_dbias: bool,
    centered: bool,
    zero_centered_weight: bool,
) -> Gradients:
    """Return (dx, dweight, dbias), None for what is not needed. Errors: `layer_norm_backward`'s."""
    dy = arrays.as_array("dy", dy)
    x = arrays.as_array("x", x)
    weight = None if weight is None else arrays.as_array("weight", weight)
    _check_stats(stats, x, centered)
    parameter_type = _check_arrays(dy, x, stats, weight)
    if need_dweight is None:
        need_dweight = weight is not None

    fill = np.empty if x.size else np.zeros
    shape = spec.normalized_shape(x.shape, stats.axis)
    dx = np.empty(x.shape, arrays.native_type(x.dtype)) if need_dx and not x.size else None
    dweight = fill(shape, parameter_type) if need_dweight else None
    dbias = fill(shape, parameter_type) if need_dbias else None
    if x.size and (need_dx or need_dweight or need_dbias):
        # All rows at once: dweight and dbias are sums over the rows in one fixed order, which
        # blocks of rows would break up. What the kernel cannot walk is therefore copied whole.
        order = order_of(x.shape, stats.axis)
        axes = tuple(order.index(axis) for axis in stats.axis)
        x, x_view, _ = _walkable(x.transpose(order), axes)
        dy, dy_view, is_copy = _walkable(dy.transpose(order), axes)
        if need_dx:
            dx = dy if is_copy else np.empty(x.shape, x.dtype)
        _native.backward(
            centered,
            bool(zero_centered_weight),
            stats.eps,
            x_view[0],
            x,
            x_view[1],
            dy,
            dy_view[1],
            arrays.flat(weight),
            arrays.flat(stats.mean),
            arrays.flat(stats.rstd),
            arrays.flat(stats.residual),
            dx,
            (x_view[0].cols * x_view[0].inner, x_view[0].inner),
            dweight,
            dbias,
        )
        if dx is not None:
            dx = np.ascontiguousarray(dx.transpose(np.argsort(order)))
    return dx, dweight, dbias


def _walkable(array: Array, axes: tuple[int, ...]) -> tuple[Array, View, bool]:
    """Return the array or its copy, how the kernel walks it, and whether it is a copy."""
    view = arrays.view(array, axes)
    if view is not None:
        return array, view, False
    copy = np.array(array, dtype=arrays.native_type(array.dtype), order="C")
    view = arrays.view(copy, axes)
    assert view is not None, "order_of makes the layout collapse"
    return copy, view, True


def _check_stats(stats: Stats, x: Array, centered: bool) -> None:
    forward = "layer_norm_forward" if centered else "rms_norm_forward"
    if not isinstance(stats, Stats):
        raise TypeError(
            f"stats is of type {type(stats).__name__}, expected layernorm.numpy.Stats: "
            f"pass the second result of {forward}"
        )
    if centered != (stats.mean is not None):
        came, expected = ("without", "with") if centered else ("with", "without")
        raise ValueError(
            f"stats came {came} a mean, expected one {expected}: pass the stats of {forward}"
        )
    if max(stats.axis) >= x.ndim:
        raise ValueError(
            f"stats are of axes {stats.axis}, but x has shape {x.shape}: "
            f"pass the x that {forward} had"
        )
    expected_shape = spec.statistics_shape(x.shape, stats.axis)
    expected_type = arrays.compute_type(x.dtype).name
    for name in ("mean", "rstd", "residual"):
        array = getattr(stats, name)
        if array is not None:
            of = f"x of shape {x.shape} normalized over axes {stats.axis}"
            spec.check_shape(f"stats.{name}", array.shape, expected_shape, of=of)
            spec.check_same_type(
                f"stats.{name}", arrays.type_name(array.dtype), expected_type, of="statistics of x"
            )


def _check_arrays(dy: Array, x: Array, stats: Stats, weight: Array | None) -> np.dtype[Any]:
    """Check dy and weight against x; return the type of dweight and dbias."""
    x_type = arrays.type_name(x.dtype)
    weight_type = None if weight is None else arrays.type_name(weight.dtype)
    spec.check_types(x_type, weight_type, convert=arrays.convert)
    spec.check_shape("dy", dy.shape, x.shape, of=f"x of shape {x.shape}")
    spec.check_same_type("dy", arrays.type_name(dy.dtype), x_type, convert=arrays.convert)
    if weight is None:
        return stats.parameter_type or arrays.native_type(x.dtype)
    spec.check_parameter("weight", weight.shape, x.shape, stats.axis)
    if stats.parameter_type is not None:
        spec.check_same_type(
            "weight",
            arrays.type_name(weight.dtype),
            arrays.type_name(stats.parameter_type),
            of="the forward's weight or bias",
            convert=arrays.convert,
        )
    return arrays.native_type(weight.dtype)
