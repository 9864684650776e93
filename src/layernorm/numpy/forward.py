"""The forward for any arrays: checks everything, then finds the kernel a way to x and y."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
import numpy.typing as npt

from layernorm import _native, spec
from layernorm.numpy import arrays
from layernorm.numpy.arrays import Array, View
from layernorm.numpy.blocks import Blocks, order_of
from layernorm.numpy.statistics import Stats

_Rows = Sequence[Array | None]  # mean, rstd, residual, where wanted


def forward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    *,
    axis: spec.Axis,
    eps: SupportsFloat,
    out: Array | None,
    centered: bool,
    zero_centered_weight: bool,
    with_stats: bool,
) -> tuple[Array, Stats | None]:
    """Return (y, stats), or (y, None) without `with_stats`. Errors: those of `layer_norm`."""
    x = arrays.as_array("x", x)
    weight = None if weight is None else arrays.as_array("weight", weight)
    bias = None if bias is None else arrays.as_array("bias", bias)
    parameters = (weight, bias)
    _check_types(x.dtype, *[None if each is None else each.dtype for each in parameters])
    axes = arrays.axes_of(axis, x.ndim)
    eps = spec.check_eps(eps)
    _check_shapes(x.shape, axes, *[None if each is None else each.shape for each in parameters])
    if out is not None:
        arrays.check_out(out, x, weight=weight, bias=bias)

    y = _native.empty(x.shape, arrays.native_type(x.dtype)) if out is None else out
    rows: _Rows = (None, None, None)
    stats = None
    if with_stats:
        stats = _empty_stats(x, axes, eps, bias if weight is None else weight, centered)
        rows = (stats.mean, stats.rstd, stats.residual)
    if x.size:
        weight, bias = arrays.contiguous(weight), arrays.contiguous(bias)
        problem = _Problem(centered, bool(zero_centered_weight), eps, weight, bias)
        problem.run(x, np.asarray(y), rows, axes)
    return y, stats


@functools.lru_cache(maxsize=64)
def _check_types(
    x: np.dtype[Any], weight: np.dtype[Any] | None, bias: np.dtype[Any] | None
) -> None:
    """Check types; that none is wrong is cached, an error is not."""
    spec.check_types(
        arrays.type_name(x),
        weight and arrays.type_name(weight),
        bias and arrays.type_name(bias),
        convert=arrays.convert,
    )


@functools.lru_cache(maxsize=1024)
def _check_shapes(
    x: spec.Shape, axes: tuple[int, ...], weight: spec.Shape | None, bias: spec.Shape | None
) -> None:
    """Check shapes; that none is wrong is cached, an error is not."""
    for name, shape in (("weight", weight), ("bias", bias)):
        if shape is not None:
            spec.check_parameter(name, shape, x, axes)


def _empty_stats(
    x: Array, axes: tuple[int, ...], eps: float, parameter: Array | None, centered: bool
) -> Stats:
    shape = arrays.statistics_shape(x.shape, axes)
    dtype = arrays.compute_type(x.dtype)
    fill = np.empty if x.size else _nothing_to_average
    return Stats(
        mean=fill(shape, dtype) if centered else None,
        rstd=fill(shape, dtype),
        residual=fill(shape, dtype) if centered else None,
        axis=axes,
        eps=eps,
        parameter_type=None if parameter is None else arrays.native_type(parameter.dtype),
    )


def _nothing_to_average(shape: spec.Shape, dtype: npt.DTypeLike) -> Array:
    return np.full(shape, np.nan, dtype)


class _Problem(NamedTuple):
    """All that the kernel takes but the arrays of rows."""

    centered: bool
    zero_centered_weight: bool
    eps: float
    weight: Array | None
    bias: Array | None

    def run(self, x: Array, y: Array, rows: _Rows, axes: tuple[int, ...]) -> None:
        x_view, y_view = arrays.view(x, axes), arrays.view(y, axes)
        if x_view is None or y_view is None:
            self._run_in_blocks(x, y, rows, axes)
        else:
            self._call_kernel(x_view, x, y_view, y, rows)

    def _run_in_blocks(self, x: Array, y: Array, rows: _Rows, axes: tuple[int, ...]) -> None:
        order = order_of(x.shape, axes)
        x, y = x.transpose(order), y.transpose(order)
        rows = [None if each is None else each.transpose(order) for each in rows]
        axes = tuple(order.index(axis) for axis in axes)
        blocks = Blocks(x.shape, axes, x.itemsize)
        scratch = np.empty(blocks.largest, arrays.native_type(x.dtype))
        for block in blocks:
            here = [None if each is None else each[block] for each in rows]
            self._run_block(x[block], y[block], here, axes, scratch)

    def _run_block(
        self, x: Array, y: Array, rows: _Rows, axes: tuple[int, ...], scratch: Array
    ) -> None:
        x_view, y_view = arrays.view(x, axes), arrays.view(y, axes)
        scratch = scratch[: x.size].reshape(x.shape)
        scratch_view = arrays.view(scratch, axes)
        assert scratch_view is not None, "order_of makes every block collapse"
        if x_view is None:
            np.copyto(scratch, x)
            x, x_view = scratch, scratch_view
        contiguous = [None if each is None else np.ascontiguousarray(each) for each in rows]
        if y_view is None:
            self._call_kernel(x_view, x, scratch_view, scratch, contiguous)
            np.copyto(y, scratch)
        else:
            self._call_kernel(x_view, x, y_view, y, contiguous)
        for each, written in zip(rows, contiguous, strict=True):
            if each is not None and written is not None and written is not each:
                np.copyto(each, written)

    def _call_kernel(self, x_view: View, x: Array, y_view: View, y: Array, rows: _Rows) -> None:
        _native.forward(
            self.centered,
            self.zero_centered_weight,
            self.eps,
            x_view[0],
            x,
            x_view[1],
            self.weight,
            self.bias,
            y,
            y_view[1],
            *rows,
        )
