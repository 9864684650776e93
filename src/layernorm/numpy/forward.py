"""The general path of the forward, for arrays of any strides: all checks, and copies if needed."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
import numpy.typing as npt

from layernorm import _native, spec
from layernorm.numpy import arrays
from layernorm.numpy.arrays import Array, View
from layernorm.numpy.blocks import Blocks, order_of
from layernorm.numpy.statistics import StatsFields

_Statistics = Sequence[Array | None]  # mean, rstd, residual; None for those not wanted
_NO_STATISTICS: _Statistics = (None, None, None)


def forward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    axis: spec.Axis,
    eps: SupportsFloat,
    out: Array | None,
    centered: bool,
    zero_centered_weight: bool,
) -> Array:
    """Return y, of layer norm if `centered`, else of RMS norm. Raises: as `layer_norm` does."""
    call = _checked(x, weight, bias, axis, eps, out, centered, zero_centered_weight)
    return call.run(out, _NO_STATISTICS)


def forward_with_statistics(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    axis: spec.Axis,
    eps: SupportsFloat,
    out: Array | None,
    centered: bool,
    zero_centered_weight: bool,
) -> tuple[Array, StatsFields]:
    """Return y and the fields of its Stats, with the arguments and errors of `forward`."""
    call = _checked(x, weight, bias, axis, eps, out, centered, zero_centered_weight)
    fields = call.new_stats_fields()
    return call.run(out, fields[:3]), fields


def _checked(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    axis: spec.Axis,
    eps: SupportsFloat,
    out: Array | None,
    centered: bool,
    zero_centered_weight: bool,
) -> "_Call":
    x = arrays.as_array("x", x)
    weight = None if weight is None else arrays.as_array("weight", weight)
    bias = None if bias is None else arrays.as_array("bias", bias)
    parameters = (weight, bias)
    _check_types(x.dtype, *[None if each is None else each.dtype for each in parameters])
    axes = spec.normalize_axes(axis, x.ndim)
    eps = spec.check_eps(eps)
    _check_shapes(x.shape, axes, *[None if each is None else each.shape for each in parameters])
    if out is not None:
        arrays.check_out(out, x, weight=weight, bias=bias)
    weight, bias = arrays.contiguous(weight), arrays.contiguous(bias)
    return _Call(x, weight, bias, axes, eps, centered, bool(zero_centered_weight))


@functools.lru_cache(maxsize=64)
def _check_types(
    x: np.dtype[Any], weight: np.dtype[Any] | None, bias: np.dtype[Any] | None
) -> None:
    """Check types. Success is cached, an error is not."""
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
    """Check shapes. Success is cached, an error is not."""
    for name, shape in (("weight", weight), ("bias", bias)):
        if shape is not None:
            spec.check_parameter(name, shape, x, axes, reshape=arrays.reshape)


class _Call(NamedTuple):
    """A forward whose arguments have been checked; weight and bias as the kernels take them."""

    x: Array
    weight: Array | None
    bias: Array | None
    axes: tuple[int, ...]
    eps: float
    centered: bool
    zero_centered_weight: bool

    def new_stats_fields(self) -> StatsFields:
        """Allocate the statistics; those of empty rows are NaN."""
        x, centered = self.x, self.centered
        shape = arrays.statistics_shape(x.shape, self.axes)
        dtype = arrays.compute_type(x.dtype)
        new = np.empty if x.size else functools.partial(np.full, fill_value=np.nan)
        parameter = self.bias if self.weight is None else self.weight
        mean = new(shape, dtype=dtype) if centered else None
        rstd = new(shape, dtype=dtype)
        residual = new(shape, dtype=dtype) if centered else None
        parameter_type = None if parameter is None else parameter.dtype
        return mean, rstd, residual, self.axes, self.eps, parameter_type

    def run(self, out: Array | None, statistics: _Statistics) -> Array:
        """Write y into `out`, or a new array, and the statistics into theirs."""
        x = self.x
        y = _native.empty(x.shape, arrays.native_type(x.dtype)) if out is None else out
        if x.size:
            self._write(x, np.asarray(y), statistics, self.axes)
        return y

    def _write(self, x: Array, y: Array, statistics: _Statistics, axes: tuple[int, ...]) -> None:
        x_view, y_view = arrays.view(x, axes), arrays.view(y, axes)
        if x_view is None or y_view is None:
            self._write_in_blocks(x, y, statistics, axes)
        else:
            self._call_kernel(x_view, x, y_view, y, statistics)

    def _write_in_blocks(
        self, x: Array, y: Array, statistics: _Statistics, axes: tuple[int, ...]
    ) -> None:
        order = order_of(x.shape, axes)
        x, y = x.transpose(order), y.transpose(order)
        statistics = [None if each is None else each.transpose(order) for each in statistics]
        axes = tuple(order.index(axis) for axis in axes)
        blocks = Blocks(x.shape, axes, x.itemsize)
        scratch = np.empty(blocks.largest, arrays.native_type(x.dtype))
        for block in blocks:
            of_block = [None if each is None else each[block] for each in statistics]
            self._write_block(x[block], y[block], of_block, axes, scratch)

    def _write_block(
        self, x: Array, y: Array, statistics: _Statistics, axes: tuple[int, ...], scratch: Array
    ) -> None:
        x_view, y_view = arrays.view(x, axes), arrays.view(y, axes)
        scratch = scratch[: x.size].reshape(x.shape)
        scratch_view = arrays.view(scratch, axes)
        assert scratch_view is not None, "order_of makes every block collapse"
        if x_view is None:
            np.copyto(scratch, x)
            x, x_view = scratch, scratch_view
        contiguous = [None if each is None else np.ascontiguousarray(each) for each in statistics]
        if y_view is None:
            self._call_kernel(x_view, x, scratch_view, scratch, contiguous)
            np.copyto(y, scratch)
        else:
            self._call_kernel(x_view, x, y_view, y, contiguous)
        for each, written in zip(statistics, contiguous, strict=True):
            if each is not None and written is not None and written is not each:
                np.copyto(each, written)

    def _call_kernel(
        self, x_view: View, x: Array, y_view: View, y: Array, statistics: _Statistics
    ) -> None:
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
            *statistics,
        )
