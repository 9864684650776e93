"""The general path of the forward, for arrays of any strides: all checks, and copies if needed."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
import numpy.typing as npt

from layernorm import _native, spec
from layernorm.numpy import arrays
from layernorm.numpy.arrays import Array
from layernorm.numpy.blocks import TOO_MANY_AXES_APART, Block, Blocks, order_of
from layernorm.numpy.statistics import Gating, ParameterShapes, StatsFields

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
    call = checked(x, weight, bias, axis, eps, out, centered, zero_centered_weight)
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
    call = checked(x, weight, bias, axis, eps, out, centered, zero_centered_weight)
    fields = call.new_stats_fields()
    return call.run(out, fields[:3]), fields


class Gate(NamedTuple):
    """The gate of a call, as its caller gave it."""

    values: npt.ArrayLike
    activation: str
    norm_before_gate: bool


def forward_beside(
    x: npt.ArrayLike,
    residual: npt.ArrayLike | None,
    gate: Gate | None,
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    axis: spec.Axis,
    eps: SupportsFloat,
    out: Array | None,
    total: Array | None,
    centered: bool,
    zero_centered_weight: bool,
    *,
    save: bool,
) -> tuple[Array, Array | None, StatsFields]:
    """Return y, x + residual or None, and if `save` the fields of the Stats of the rows."""
    spec.check_total(total is not None, residual is not None)
    x = arrays.as_array("x", x)
    addend = None if residual is None else arrays.as_array("residual", residual)
    call = checked(
        x, weight, bias, axis, eps, out, centered, zero_centered_weight, addend, total, gate
    )
    if addend is not None and total is None:
        total = _native.empty(x.shape, arrays.native_type(x.dtype))
    fused = None if total is None else np.asarray(total)
    if fused is not None and gate is not None:  # no kernel takes both
        call, fused = call.of_sum(fused), None
    fields = call.new_stats_fields() if save else ()
    return call.run(out, fields[:3] if save else _NO_STATISTICS, fused), total, fields


def checked(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    axis: spec.Axis,
    eps: SupportsFloat,
    out: Array | None,
    centered: bool,
    zero_centered_weight: bool,
    addend: Array | None = None,
    total: Array | None = None,
    gate: Gate | None = None,
) -> "Call":
    """Check the arguments of a forward, and return its call."""
    x = arrays.as_array("x", x)
    weight = None if weight is None else arrays.as_array("weight", weight)
    bias = None if bias is None else arrays.as_array("bias", bias)
    parameters = (weight, bias)
    _check_types(x.dtype, *[None if each is None else each.dtype for each in parameters])
    if addend is not None:
        _check_same("residual", arrays.describe(addend), arrays.describe(x))
    gate_values, gating = None, None
    if gate is not None:
        gate_values = arrays.as_array("gate", gate.values)
        _check_same("gate", arrays.describe(gate_values), arrays.describe(x))
        activation = spec.check_activation(gate.activation)
        gating = Gating(activation, bool(gate.norm_before_gate), bias)
    axes = spec.normalize_axes(axis, x.ndim)
    eps = spec.check_eps(eps)
    shapes = [None if each is None else each.shape for each in parameters]
    varying = _check_shapes(x.shape, axes, *shapes)
    others = {"residual": addend, "gate": gate_values, "weight": weight, "bias": bias}
    if total is not None:
        arrays.check_output("total", total, x, **others)
    if out is not None:
        arrays.check_output("out", out, x, **others, total=total)
    normalized = arrays.normalized_shape(x.shape, axes)
    has_kept_axes = any(shape != normalized for shape in shapes if shape is not None)
    return Call(
        x,
        addend,
        arrays.spread(weight, x.shape, axes, varying),
        arrays.spread(bias, x.shape, axes, varying),
        axes,
        varying,
        eps,
        centered,
        bool(zero_centered_weight),
        (shapes[0], shapes[1]) if has_kept_axes else None,
        gate_values,
        gating,
    )


@functools.lru_cache(maxsize=1024)
def _check_same(name: str, given: arrays.Description, x: arrays.Description) -> None:
    """Check that type and shape are x's. Success is cached, an error is not."""
    types = (arrays.type_name(each[0]) for each in (given, x))
    spec.check_same_type(name, *types, convert=arrays.convert)
    spec.check_shape(name, given[1], x[1], of=f"x of shape {x[1]}")


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
) -> tuple[int, ...]:
    """Check shapes; return the axes along which parameters vary. Errors are not cached."""
    varying: set[int] = set()
    for name, shape in (("weight", weight), ("bias", bias)):
        if shape is not None:
            varying.update(spec.check_parameter(name, shape, x, axes, reshape=arrays.reshape))
    return tuple(sorted(varying))


class Call(NamedTuple):
    """A forward whose arguments have been checked; weight and bias as the kernels take them."""

    x: Array
    addend: Array | None
    weight: Array | None
    bias: Array | None
    axes: tuple[int, ...]
    varying: tuple[int, ...]  # kept axes along which weight or bias does
    eps: float
    centered: bool
    zero_centered_weight: bool
    parameter_shapes: ParameterShapes | None  # as in Stats
    gate: Array | None
    gating: Gating | None

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
        fields = mean, rstd, residual, self.axes, self.eps, parameter_type
        if self.gating is not None:
            return *fields, self.parameter_shapes, self.gating
        return fields if self.parameter_shapes is None else (*fields, self.parameter_shapes)

    def run(self, out: Array | None, statistics: _Statistics, total: Array | None = None) -> Array:
        """Write y into `out`, or a new array, the statistics into theirs, and x + addend."""
        x = self.x
        y = _native.empty(x.shape, arrays.native_type(x.dtype)) if out is None else out
        if x.size and not self._run_kernel(x, np.asarray(y), statistics, total):
            call = self if total is None else self.of_sum(total)
            call._write_in_blocks(np.asarray(y), statistics)
        return y

    def quantize(
        self, q: Array, q_type: str, scales: Array | None, given_scale: Array | None
    ) -> None:
        """Write q, as bytes, and the scales of the rows, unless there is a given one."""

        def run(call: "Call", q: Array, scales: Array | None) -> bool:
            return _native.forward_quantized(
                *(call.centered, call.zero_centered_weight, call.eps, call.axes, call.varying),
                *(call.x, call.weight, call.bias),
                q,
                list(spec.QUANTIZED_TYPES).index(q_type),
                scales,
                given_scale,
            )

        if run(self, q, scales):
            return
        order = order_of(self.x.shape, self.axes, self.varying)
        call, q = self._in_order(order), q.transpose(order)
        scales = None if scales is None else scales.transpose(order)
        for block in Blocks(call.x.shape, call.axes, call.x.itemsize):
            own = call._of_block(block)
            own = own._replace(x=np.array(own.x, arrays.native_type(own.x.dtype), order="C"))
            q_here = np.empty(own.x.shape, np.int8)
            scales_here = None if scales is None else np.empty_like(scales[block], order="C")
            if not run(own, q_here, scales_here):
                raise ValueError(TOO_MANY_AXES_APART)
            np.copyto(q[block], q_here)
            if scales is not None and scales_here is not None:
                np.copyto(scales[block], scales_here)

    def of_sum(self, total: Array) -> "Call":
        """Write x + addend, and return the call on it."""
        assert self.addend is not None
        with np.errstate(all="ignore"):
            np.add(self.x, self.addend, out=total)
        return self._replace(x=total, addend=None)

    def _write_in_blocks(self, y: Array, statistics: _Statistics) -> None:
        order = order_of(self.x.shape, self.axes, self.varying)
        call, y = self._in_order(order), y.transpose(order)
        statistics = [None if each is None else each.transpose(order) for each in statistics]
        blocks = Blocks(call.x.shape, call.axes, call.x.itemsize)
        scratch = np.empty(blocks.largest, arrays.native_type(call.x.dtype))
        for block in blocks:
            of_block = [None if each is None else each[block] for each in statistics]
            call._of_block(block)._write_block(y[block], of_block, scratch)

    def _in_order(self, order: tuple[int, ...]) -> "Call":
        axes, varying = (tuple(map(order.index, each)) for each in (self.axes, self.varying))
        gate = None if self.gate is None else self.gate.transpose(order)
        call = self._replace(x=self.x.transpose(order), gate=gate, axes=axes, varying=varying)
        return call._with_parameters(lambda each: each.transpose(order)) if varying else call

    def _of_block(self, block: Block) -> "Call":
        gate = None if self.gate is None else arrays.contiguous(self.gate[block])
        call = self._replace(x=self.x[block], gate=gate)
        if not self.varying:
            return call
        cuts = enumerate(block)
        own = tuple(cut if axis in self.varying else slice(None) for axis, cut in cuts)
        return call._with_parameters(lambda each: arrays.contiguous(each[own]))

    def _with_parameters(self, change: Callable[[Array], Array]) -> "Call":
        weight, bias = (None if e is None else change(e) for e in (self.weight, self.bias))
        return self._replace(weight=weight, bias=bias)

    def _write_block(self, y: Array, statistics: _Statistics, scratch: Array) -> None:
        x = self.x
        scratch = scratch[: x.size].reshape(x.shape)
        contiguous = [None if each is None else np.ascontiguousarray(each) for each in statistics]
        for source, target in ((x, y), (x, scratch), (scratch, y), (scratch, scratch)):
            if source is scratch and target is y:
                np.copyto(scratch, x)
            if self._run_kernel(source, target, contiguous):
                break
        else:
            raise ValueError(TOO_MANY_AXES_APART)
        if target is scratch:
            np.copyto(y, scratch)
        for each, written in zip(statistics, contiguous, strict=True):
            if each is not None and written is not None and written is not each:
                np.copyto(each, written)

    def _run_kernel(
        self, x: Array, y: Array, statistics: _Statistics, total: Array | None = None
    ) -> bool:
        """Write y; False, with nothing done, where the kernel needs a copy of an array."""
        mean, rstd, residual = statistics
        return _native.forward(
            *(self.centered, self.zero_centered_weight, self.eps, self.axes, self.varying),
            *(x, self.weight, self.bias),
            y,
            mean,
            rstd,
            residual,
            self.addend,
            total,
            self.gate,
            *gate_flags(self.gating),
        )


def gate_flags(gating: Gating | None) -> tuple[bool, bool]:
    """Return is_silu and norm_before_gate, as the kernels take them."""
    if gating is None:
        return False, False
    return gating.activation == "silu", gating.norm_before_gate
