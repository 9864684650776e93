"""The general path of the backward, for arrays of any strides: all checks, and copies if needed."""

import functools
from collections.abc import Sequence
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
    need_dx: bool,
    need_dweight: bool | None,
    need_dbias: bool,
    centered: bool,
    zero_centered_weight: bool,
) -> Gradients:
    """Return (dx, dweight, dbias), None for those not needed.

    Raises: as `layer_norm_backward` does.
    """
    dy = arrays.as_array("dy", dy)
    x = arrays.as_array("x", x)
    weight = None if weight is None else arrays.as_array("weight", weight)
    _check_kind(stats, centered)
    axes = stats.axis
    parameter_type = _check(
        arrays.describe(dy),
        arrays.describe(x),
        arrays.describe(weight),
        axes,
        stats.parameter_type,
        *map(arrays.describe, (stats.mean, stats.rstd, stats.residual)),
    )
    if need_dweight is None:
        need_dweight = weight is not None

    fill = np.empty if x.size else np.zeros
    shape = arrays.normalized_shape(x.shape, axes)
    dx = None
    dweight = fill(shape, parameter_type) if need_dweight else None
    dbias = fill(shape, parameter_type) if need_dbias else None
    if x.size == 0:
        return (np.empty(x.shape, arrays.native_type(x.dtype)) if need_dx else None), dweight, dbias

    # Unlike the forward, not in blocks of rows: they would change the order of the sums over rows,
    # dweight and dbias. So an array that the kernel cannot read in place is copied whole.
    order = None
    if arrays.contiguous_view(x.shape, axes) is None:
        order = order_of(x.shape, axes)
        x, dy = x.transpose(order), dy.transpose(order)
        axes = tuple(order.index(axis) for axis in axes)
    x, x_view = _in_place_or_copied(x, axes)
    dy, dy_view = _in_place_or_copied(dy, axes)
    layout, x_strides = x_view
    if need_dx:
        dx = _native.empty(x.shape, x.dtype)
    _native.backward(
        centered,
        bool(zero_centered_weight),
        stats.eps,
        layout,
        x,
        x_strides,
        dy,
        dy_view[1],
        arrays.contiguous(weight),
        arrays.contiguous(stats.mean),
        arrays.contiguous(stats.rstd),
        arrays.contiguous(stats.residual),
        dx,
        (layout.cols * layout.inner, layout.inner),
        dweight,
        dbias,
    )
    if order is not None and dx is not None:
        dx = np.ascontiguousarray(dx.transpose(np.argsort(order)))
    return dx, dweight, dbias


def _in_place_or_copied(array: Array, axes: tuple[int, ...]) -> tuple[Array, View]:
    """Return the array, or a copy that the kernel can read, and its view."""
    view = arrays.view(array, axes)
    if view is not None:
        return array, view
    copy = np.array(array, dtype=arrays.native_type(array.dtype), order="C")
    view = arrays.view(copy, axes)
    assert view is not None, "order_of makes the layout collapse"
    return copy, view


def _check_kind(stats: Stats, centered: bool) -> None:
    forward = "layer_norm_forward" if centered else "rms_norm_forward"
    if not isinstance(stats, Stats):
        raise TypeError(
            f"stats is of type {type(stats).__name__}, expected layernorm.numpy.Stats: "
            f"pass the second result of {forward}"
        )
    if centered != (stats.mean is not None):
        came, expected = ("without", "with") if centered else ("with", "without")
        raise ValueError(
            f"stats came {came} a mean, expected stats {expected} one: pass those of {forward}"
        )


@functools.lru_cache(maxsize=1024)
def _check(
    dy: arrays.Description,
    x: arrays.Description,
    weight: arrays.Description | None,
    axes: tuple[int, ...],
    forward_type: np.dtype[Any] | None,
    *statistics: arrays.Description | None,
) -> np.dtype[Any]:
    """Check types and shapes; return the type of dweight and dbias. Errors are not cached."""
    (dy_dtype, dy_shape), (x_dtype, x_shape) = dy, x
    weight_type = weight and arrays.type_name(weight[0])
    spec.check_types(arrays.type_name(x_dtype), weight_type, convert=arrays.convert)
    spec.check_shape("dy", dy_shape, x_shape, of=f"x of shape {x_shape}")
    spec.check_same_type(
        "dy", arrays.type_name(dy_dtype), arrays.type_name(x_dtype), convert=arrays.convert
    )
    _check_statistics(x_dtype, x_shape, axes, statistics)
    if weight is None or weight_type is None:
        return forward_type or arrays.native_type(x_dtype)
    spec.check_parameter("weight", weight[1], x_shape, axes, reshape=arrays.reshape)
    if forward_type is not None:
        spec.check_same_type(
            "weight",
            weight_type,
            arrays.type_name(forward_type),
            of="the forward's weight or bias",
            convert=arrays.convert,
        )
    return arrays.native_type(weight[0])


def _check_statistics(
    x_dtype: np.dtype[Any],
    x_shape: spec.Shape,
    axes: tuple[int, ...],
    statistics: Sequence[arrays.Description | None],
) -> None:
    if max(axes) >= len(x_shape):
        raise ValueError(
            f"stats are for axes {axes}, but x has shape {x_shape}: pass the x given to the forward"
        )
    shape = spec.statistics_shape(x_shape, axes)
    dtype = arrays.compute_type(x_dtype)
    for name, given in zip(("mean", "rstd", "residual"), statistics, strict=True):
        if given is not None:
            of = f"x of shape {x_shape} normalized over axes {axes}"
            spec.check_shape(f"stats.{name}", given[1], shape, of=of)
            of = "the statistics of this x"
            spec.check_same_type(f"stats.{name}", arrays.type_name(given[0]), dtype.name, of=of)
