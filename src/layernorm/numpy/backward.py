"""The general path of the backward, for arrays of any strides: all checks, and copies if needed."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from layernorm import _native, spec
from layernorm.numpy import arrays
from layernorm.numpy.arrays import Array
from layernorm.numpy.blocks import TOO_MANY_AXES_APART, order_of
from layernorm.numpy.forward import gate_flags
from layernorm.numpy.statistics import Gating, Stats

Gradients = tuple[Array | None, Array | None, Array | None]
GatedGradients = tuple[Array | None, Array | None, Array | None, Array | None]


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
    dtotal: npt.ArrayLike | None = None,
) -> Gradients:
    """Return (dx, dweight, dbias), None for those not needed.

    Raises: as `layer_norm_backward` does.
    """
    return _backward(
        *(dy, x, stats, weight, need_dx, need_dweight, need_dbias, centered),
        *(zero_centered_weight, dtotal, None, False),
    )[:3]


def backward_gated(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    stats: Stats,
    weight: npt.ArrayLike | None,
    gate: npt.ArrayLike,
    need_dx: bool,
    need_dweight: bool | None,
    need_dbias: bool,
    need_dgate: bool,
    centered: bool,
    zero_centered_weight: bool,
    dtotal: npt.ArrayLike | None = None,
) -> GatedGradients:
    """Return (dx, dweight, dbias, dgate), None for those not needed.

    Raises: as `layer_norm_backward` does.
    """
    gate = arrays.as_array("gate", gate)
    dx, *others = _backward(
        *(dy, x, stats, weight, need_dx, need_dweight, need_dbias, centered),
        *(zero_centered_weight, dtotal, gate, need_dgate),
    )
    if dx is not None and dtotal is not None:
        with np.errstate(all="ignore"):
            np.add(dx, dtotal, out=dx)
    return dx, others[0], others[1], others[2]


def _backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    stats: Stats,
    weight: npt.ArrayLike | None,
    need_dx: bool,
    need_dweight: bool | None,
    need_dbias: bool,
    centered: bool,
    zero_centered_weight: bool,
    dtotal: npt.ArrayLike | None,
    gate: Array | None,
    need_dgate: bool,
) -> GatedGradients:
    """Return the gradients; with a gate, dtotal is checked and not added to dx."""
    dy = arrays.as_array("dy", dy)
    x = arrays.as_array("x", x)
    dtotal = None if dtotal is None else arrays.as_array("dtotal", dtotal)
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
    if dtotal is not None:
        _check_gradient("dtotal", arrays.describe(dtotal), arrays.describe(x))
    _check_gate(gate, x, stats.gating)
    if need_dweight is None:
        need_dweight = weight is not None

    shapes = _parameter_shapes(weight, stats, arrays.normalized_shape(x.shape, axes))
    of_weight, of_bias = (spec.varying_axes(each, x.shape, axes) or () for each in shapes)
    flags = centered, bool(zero_centered_weight), parameter_type
    call = _Call(dy, dtotal if gate is None else None, x, stats, *flags, gate)
    dgate = None
    if of_weight == of_bias or not (need_dbias or need_dgate):
        dx, dweight, dbias, dgate = call.run(
            weight, of_weight, need_dx, need_dweight, need_dbias, need_dgate
        )
    # Each by a call that sums over the rows that share it.
    elif need_dgate:
        both = tuple(sorted({*of_weight, *of_bias}))
        dx, _, _, dgate = call.run(weight, both, need_dx, False, False, True)
        dweight = call.run(weight, of_weight, False, need_dweight, False)[1]
        dbias = call.run(None, of_bias, False, False, need_dbias)[2]
    elif weight is None:
        dweight = call.run(None, of_weight, False, need_dweight, False)[1]
        dx, _, dbias, _ = call.run(None, of_bias, need_dx, False, True)
    else:  # dbias needs no weight
        dbias = call.run(None, of_bias, False, False, True)[2]
        dx, dweight = call.run(weight, of_weight, need_dx, need_dweight, False)[:2]
    dweight, dbias = (
        None if gradient is None else gradient.reshape(shape)
        for gradient, shape in zip((dweight, dbias), shapes, strict=True)
    )
    return dx, dweight, dbias, dgate


def _parameter_shapes(
    weight: Array | None, stats: Stats, normal: spec.Shape
) -> tuple[spec.Shape, spec.Shape]:
    """Return the shapes of dweight and dbias."""
    of_weight, of_bias = stats.parameter_shapes or (None, None)
    if weight is not None:
        if of_weight is not None:
            spec.check_shape("weight", weight.shape, of_weight, of="the forward's weight")
        of_weight = weight.shape
    return of_weight or normal, of_bias or normal


class _Call(NamedTuple):
    """A backward whose arguments have been checked."""

    dy: Array
    dtotal: Array | None
    x: Array
    stats: Stats
    centered: bool
    zero_centered_weight: bool
    parameter_type: np.dtype[Any]
    gate: Array | None

    def run(
        self,
        weight: Array | None,
        varying: tuple[int, ...],
        need_dx: bool,
        need_dweight: bool,
        need_dbias: bool,
        need_dgate: bool = False,
    ) -> GatedGradients:
        """Return all gradients, where parameters vary along these axes of x."""
        x, axes, statistics = self.x, self.stats.axis, self.stats
        shape = arrays.normalized_shape(x.shape, axes)
        if varying:
            shape = spec.parameter_shape(x.shape, axes, varying)
        # The kernels write in an order of x's axes that they can read.
        order = order_of(x.shape, axes, varying)
        back = tuple(map(order.index, range(x.ndim)))
        ordered = tuple(shape[axis] for axis in order) if varying else shape
        fill = np.empty if x.size else np.zeros
        dx = dweight = dbias = dgate = None
        sizes = tuple(x.shape[axis] for axis in order)
        if need_dx:
            dx = _native.empty(sizes, arrays.native_type(x.dtype))
        if need_dgate:
            dgate = _native.empty(sizes, arrays.native_type(x.dtype))
        if need_dweight:
            dweight = fill(ordered, self.parameter_type)
        if need_dbias:
            dbias = fill(ordered, self.parameter_type)
        gating = statistics.gating
        bias = gating.bias if gating and need_dgate else None
        if x.size and (need_dx or need_dweight or need_dbias or need_dgate):
            spread, spread_bias = (
                arrays.spread(each, x.shape, axes, varying) for each in (weight, bias)
            )
            if varying:
                spread, spread_bias = (
                    None if each is None else arrays.contiguous(each.transpose(order))
                    for each in (spread, spread_bias)
                )
            _run_kernel(
                *(self.centered, self.zero_centered_weight, statistics.eps),
                *(tuple(map(order.index, each)) for each in (axes, varying)),
                *(x.transpose(order), self.dy.transpose(order), spread),
                *map(arrays.contiguous, (statistics.mean, statistics.rstd, statistics.residual)),
                *(dx, dweight, dbias),
                None if self.dtotal is None else self.dtotal.transpose(order),
                spread_bias,
                None if self.gate is None else self.gate.transpose(order),
                dgate,
                *gate_flags(gating),
            )
        dx, dgate = (
            None if each is None else np.ascontiguousarray(each.transpose(back))
            for each in (dx, dgate)
        )
        if varying:
            dweight, dbias = (
                None if each is None else np.ascontiguousarray(each.transpose(back))
                for each in (dweight, dbias)
            )
        return dx, dweight, dbias, dgate


def _run_kernel(*arguments: Any) -> None:
    """Call the kernel, on copies of x, dy, dtotal and the gate where it cannot read them in place.

    Unlike the forward, not in blocks of rows: they would change the order of the sums over rows,
    dweight and dbias. So an array that the kernel cannot read in place is copied whole.
    """
    before, (x, dy), rest = arguments[:5], arguments[5:7], arguments[7:14]
    dtotal, bias, gate, *last = arguments[14:]
    kernel: Any = _native.backward
    if kernel(*before, x, dy, *rest, dtotal, bias, gate, *last):
        return
    dy, dtotal, gate = map(_copied, (dy, dtotal, gate))
    for each in (x, _copied(x)):
        if kernel(*before, each, dy, *rest, dtotal, bias, gate, *last):
            return
    raise ValueError(TOO_MANY_AXES_APART)


def _copied(array: Array | None) -> Array | None:
    if array is None:
        return None
    return np.array(array, dtype=arrays.native_type(array.dtype), order="C")


def _check_gate(gate: Array | None, x: Array, gating: Gating | None) -> None:
    if (gate is None) != (gating is None):
        came, expected = ("with", "without") if gate is None else ("without", "with")
        raise ValueError(
            f"stats came from a forward {came} a gate, expected one {expected}: pass "
            f"gate={'the gate of the forward' if gate is None else None}, or the stats of another "
            "forward"
        )
    if gate is not None:
        _check_gradient("gate", arrays.describe(gate), arrays.describe(x))


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
    x_dtype, x_shape = x
    weight_type = weight and arrays.type_name(weight[0])
    spec.check_types(arrays.type_name(x_dtype), weight_type, convert=arrays.convert)
    _check_gradient("dy", dy, x)
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


@functools.lru_cache(maxsize=1024)
def _check_gradient(name: str, given: arrays.Description, x: arrays.Description) -> None:
    spec.check_shape(name, given[1], x[1], of=f"x of shape {x[1]}")
    types = (arrays.type_name(each[0]) for each in (given, x))
    spec.check_same_type(name, *types, convert=arrays.convert)


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
