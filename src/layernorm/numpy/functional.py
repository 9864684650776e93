"""Layer norm and RMS norm of NumPy arrays, forward and backward.

Each function calls a `try_` function of the compiled module, the fast path. If that returns None,
it calls the general path with the same arguments. `layer_norm` and `rms_norm` do so in their own
bodies: one more Python call is a tenth of their time on a small array.
"""

from typing import SupportsFloat, overload

import numpy.typing as npt

from layernorm import spec
from layernorm._native import try_backward, try_forward, try_forward_with_statistics
from layernorm.numpy.arrays import Array
from layernorm.numpy.backward import GatedGradients, Gradients, backward, backward_gated
from layernorm.numpy.forward import (
    Gate,
    forward,
    forward_beside,
    forward_with_statistics,
)
from layernorm.numpy.statistics import Stats, StatsFields


@overload
def layer_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    residual: None = None,
    gate: npt.ArrayLike | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    out: Array | None = None,
    total: None = None,
    zero_centered_weight: bool = False,
) -> Array: ...
@overload
def layer_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    residual: npt.ArrayLike,
    gate: npt.ArrayLike | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    out: Array | None = None,
    total: Array | None = None,
    zero_centered_weight: bool = False,
) -> tuple[Array, Array]: ...
def layer_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    residual: npt.ArrayLike | None = None,
    gate: npt.ArrayLike | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    out: Array | None = None,
    total: Array | None = None,
    zero_centered_weight: bool = False,
) -> Array | tuple[Array, Array]:
    """Normalize `x` over `axis` to zero mean and unit variance, then scale and shift.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with the biased variance.

    Args:
        x: array, float16, bfloat16 (of ml_dtypes), float32 or float64, of any shape and strides.
        weight, bias: arrays with the normalized shape (x's sizes along `axis`, in x's order), or
            None. Or of a shape that broadcasts against x, with x's sizes along `axis`: adaptive
            layer norm is `weight=scale[:, None], bias=shift[:, None], zero_centered_weight=True`.
            Of x's type, or both float32 for 16-bit x.
        residual: array of x's shape and type to add first: y is the norm of x + residual.
        gate: array of x's shape and type to multiply y by, activated.
        activation: of the gate z: "silu", z * sigmoid(z), or "sigmoid", 1 / (1 + exp(-z)).
        norm_before_gate: y = norm(x) * activation(gate); if false, norm(x * activation(gate)).
        axis: int or ints; need not be the last, nor adjacent.
        eps: added to the variance, in units of x squared.
        out: array of x's shape and type to write y to; may be `x`, `residual` or `gate` itself.
        total: the same for x + residual.
        zero_centered_weight: multiply by 1 + weight; no effect without a weight.
    Returns: y, with x's shape and type: `out` if given, else a new C-contiguous array. With a
        residual (y, total): total is x + residual, rounded to x's type, and y the norm of that.
    Raises: ValueError for shapes, axes, eps, and an `out` or a `total` that is read-only or partly
        overlaps another array; TypeError for types. Nothing has been written then.
    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    if residual is not None or gate is not None or total is not None:
        gated = None if gate is None else Gate(gate, activation, norm_before_gate)
        result, sum_of_x, _ = norm_beside(
            *(x, residual, gated, weight, bias, axis, eps, out, total, True),
            zero_centered_weight,
            save=False,
        )
        return result if sum_of_x is None else (result, sum_of_x)
    y = try_forward(x, weight, bias, axis, eps, out, True, zero_centered_weight)
    if y is None:
        y = forward(x, weight, bias, axis, eps, out, True, zero_centered_weight)
    return y


@overload
def rms_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    residual: None = None,
    gate: npt.ArrayLike | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    out: Array | None = None,
    total: None = None,
    zero_centered_weight: bool = False,
) -> Array: ...
@overload
def rms_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    residual: npt.ArrayLike,
    gate: npt.ArrayLike | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    out: Array | None = None,
    total: Array | None = None,
    zero_centered_weight: bool = False,
) -> tuple[Array, Array]: ...
def rms_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    residual: npt.ArrayLike | None = None,
    gate: npt.ArrayLike | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    out: Array | None = None,
    total: Array | None = None,
    zero_centered_weight: bool = False,
) -> Array | tuple[Array, Array]:
    """Divide `x` by its root mean square over `axis`, then scale.

    y = x / sqrt(mean(x**2) + eps) * weight

    Args:
        x, weight, residual, gate, activation, norm_before_gate, axis, out, total,
            zero_centered_weight: as in `layer_norm`.
        eps: added to the mean square, in units of x squared.
    Returns: y, or (y, total), as `layer_norm` does.
    Raises: as `layer_norm` does.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    if residual is not None or gate is not None or total is not None:
        gated = None if gate is None else Gate(gate, activation, norm_before_gate)
        result, sum_of_x, _ = norm_beside(
            *(x, residual, gated, weight, None, axis, eps, out, total, False),
            zero_centered_weight,
            save=False,
        )
        return result if sum_of_x is None else (result, sum_of_x)
    y = try_forward(x, weight, None, axis, eps, out, False, zero_centered_weight)
    if y is None:
        y = forward(x, weight, None, axis, eps, out, False, zero_centered_weight)
    return y


@overload
def layer_norm_forward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    residual: None = None,
    gate: npt.ArrayLike | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    out: Array | None = None,
    total: None = None,
    zero_centered_weight: bool = False,
) -> tuple[Array, Stats]: ...
@overload
def layer_norm_forward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    residual: npt.ArrayLike,
    gate: npt.ArrayLike | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    out: Array | None = None,
    total: Array | None = None,
    zero_centered_weight: bool = False,
) -> tuple[Array, Array, Stats]: ...
def layer_norm_forward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    residual: npt.ArrayLike | None = None,
    gate: npt.ArrayLike | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    out: Array | None = None,
    total: Array | None = None,
    zero_centered_weight: bool = False,
) -> tuple[Array, Stats] | tuple[Array, Array, Stats]:
    """Return what `layer_norm` returns, and the statistics that the backward needs.

    Args: as in `layer_norm`. `out=x` rules out the backward, which needs x.
    Returns: (y, stats), with a residual (y, total, stats): y has the bits that `layer_norm`
        returns, stats are those of the rows of x, or of total.
    Raises: as `layer_norm` does.
    """
    if residual is not None or gate is not None or total is not None:
        gated = None if gate is None else Gate(gate, activation, norm_before_gate)
        y, total, fields = norm_beside(
            *(x, residual, gated, weight, bias, axis, eps, out, total, True),
            zero_centered_weight,
            save=True,
        )
        return (y, Stats(*fields)) if total is None else (y, total, Stats(*fields))
    y, fields = norm_forward(x, weight, bias, axis, eps, out, True, zero_centered_weight)
    return y, Stats(*fields)


@overload
def rms_norm_forward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    residual: None = None,
    gate: npt.ArrayLike | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    out: Array | None = None,
    total: None = None,
    zero_centered_weight: bool = False,
) -> tuple[Array, Stats]: ...
@overload
def rms_norm_forward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    residual: npt.ArrayLike,
    gate: npt.ArrayLike | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    out: Array | None = None,
    total: Array | None = None,
    zero_centered_weight: bool = False,
) -> tuple[Array, Array, Stats]: ...
def rms_norm_forward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    residual: npt.ArrayLike | None = None,
    gate: npt.ArrayLike | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    out: Array | None = None,
    total: Array | None = None,
    zero_centered_weight: bool = False,
) -> tuple[Array, Stats] | tuple[Array, Array, Stats]:
    """Return what `rms_norm` returns, and the statistics that the backward needs.

    Args: as in `rms_norm`. `out=x` rules out the backward, which needs x.
    Returns: as `layer_norm_forward` does; stats.mean is None.
    Raises: as `rms_norm` does.
    """
    if residual is not None or gate is not None or total is not None:
        gated = None if gate is None else Gate(gate, activation, norm_before_gate)
        y, total, fields = norm_beside(
            *(x, residual, gated, weight, None, axis, eps, out, total, False),
            zero_centered_weight,
            save=True,
        )
        return (y, Stats(*fields)) if total is None else (y, total, Stats(*fields))
    y, fields = norm_forward(x, weight, None, axis, eps, out, False, zero_centered_weight)
    return y, Stats(*fields)


@overload
def layer_norm_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    stats: Stats,
    weight: npt.ArrayLike | None = None,
    *,
    gate: None = None,
    dtotal: npt.ArrayLike | None = None,
    need_dx: bool = True,
    need_dweight: bool | None = None,
    need_dbias: bool = True,
    need_dgate: bool = True,
    zero_centered_weight: bool = False,
) -> Gradients: ...
@overload
def layer_norm_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    stats: Stats,
    weight: npt.ArrayLike | None = None,
    *,
    gate: npt.ArrayLike,
    dtotal: npt.ArrayLike | None = None,
    need_dx: bool = True,
    need_dweight: bool | None = None,
    need_dbias: bool = True,
    need_dgate: bool = True,
    zero_centered_weight: bool = False,
) -> GatedGradients: ...
def layer_norm_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    stats: Stats,
    weight: npt.ArrayLike | None = None,
    *,
    gate: npt.ArrayLike | None = None,
    dtotal: npt.ArrayLike | None = None,
    need_dx: bool = True,
    need_dweight: bool | None = None,
    need_dbias: bool = True,
    need_dgate: bool = True,
    zero_centered_weight: bool = False,
) -> Gradients | GatedGradients:
    """Return the gradients of a loss with respect to x, weight and bias, given that for y.

    With g = dy * weight, and means over the normalized axes:
    dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), where xhat = (x - mean) * rstd;
    dweight = sum over the rows of dy * xhat;  dbias = sum over the rows of dy.

    With a gate the same on n = norm(x), where y = n * act(gate): with dy * act(gate) for dy, and
    dgate = dy * n * act'(gate). Or on u = x * act(gate), where y = norm(u): with du for dx,
    dx = du * act(gate) and dgate = du * x * act'(gate).

    Args:
        dy: gradient with respect to y, of x's shape and type.
        x, weight, zero_centered_weight: as given to `layer_norm_forward`; if that had a residual,
            total instead of x.
        stats: the last result of `layer_norm_forward`.
        gate: as given to `layer_norm_forward`.
        dtotal: gradient with respect to total, of x's shape and type, which is added to dx before
            dx is rounded; dx is then the gradient of both x and the residual. None means zero.
            With a gate in 16 bits, dx is rounded before and after.
        need_dx, need_dweight, need_dbias, need_dgate: which gradients to compute;
            need_dweight=None means only if there is a weight.
    Returns: (dx, dweight, dbias), and with a gate (dx, dweight, dbias, dgate), None for those not
        needed: dx and dgate have x's shape and type, dweight and dbias have the parameters' shapes
        and type (the normalized shape and x's type where there were none).
    Raises: ValueError for shapes, TypeError for types, also if stats do not fit x.
    """
    if gate is not None:
        return backward_gated(
            *(dy, x, stats, weight, gate, need_dx, need_dweight, need_dbias, need_dgate),
            *(True, zero_centered_weight, dtotal),
        )
    return norm_backward(
        dy, x, stats, weight, need_dx, need_dweight, need_dbias, True, zero_centered_weight, dtotal
    )


@overload
def rms_norm_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    stats: Stats,
    weight: npt.ArrayLike | None = None,
    *,
    gate: None = None,
    dtotal: npt.ArrayLike | None = None,
    need_dx: bool = True,
    need_dweight: bool | None = None,
    need_dgate: bool = True,
    zero_centered_weight: bool = False,
) -> tuple[Array | None, Array | None]: ...
@overload
def rms_norm_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    stats: Stats,
    weight: npt.ArrayLike | None = None,
    *,
    gate: npt.ArrayLike,
    dtotal: npt.ArrayLike | None = None,
    need_dx: bool = True,
    need_dweight: bool | None = None,
    need_dgate: bool = True,
    zero_centered_weight: bool = False,
) -> Gradients: ...
def rms_norm_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    stats: Stats,
    weight: npt.ArrayLike | None = None,
    *,
    gate: npt.ArrayLike | None = None,
    dtotal: npt.ArrayLike | None = None,
    need_dx: bool = True,
    need_dweight: bool | None = None,
    need_dgate: bool = True,
    zero_centered_weight: bool = False,
) -> tuple[Array | None, Array | None] | Gradients:
    """Return the gradients of a loss with respect to x and weight, given that for y.

    With g = dy * weight, xhat = x * rstd, and means over the normalized axes:
    dx = rstd * (g - xhat * mean(g * xhat));  dweight = sum over the rows of dy * xhat.
    With a gate as in `layer_norm_backward`.

    Args:
        dy, gate, dtotal: as in `layer_norm_backward`.
        x, weight, zero_centered_weight: as given to `rms_norm_forward`; if that had a residual,
            total instead of x.
        stats: the last result of `rms_norm_forward`.
        need_dx, need_dweight, need_dgate: which gradients to compute; need_dweight=None means only
            if there is a weight.
    Returns: (dx, dweight), and with a gate (dx, dweight, dgate), None for those not needed; shapes
        and types as in `layer_norm_backward`.
    Raises: ValueError for shapes, TypeError for types, also if stats do not fit x.
    """
    if gate is not None:
        dx, dweight, _, dgate = backward_gated(
            *(dy, x, stats, weight, gate, need_dx, need_dweight, False, need_dgate),
            *(False, zero_centered_weight, dtotal),
        )
        return dx, dweight, dgate
    dx, dweight, _ = norm_backward(
        dy, x, stats, weight, need_dx, need_dweight, False, False, zero_centered_weight, dtotal
    )
    return dx, dweight


def norm_forward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    axis: spec.Axis,
    eps: SupportsFloat,
    out: Array | None,
    centered: bool,
    zero_centered_weight: bool,
) -> tuple[Array, StatsFields]:
    """Return y, of layer norm if `centered`, else of RMS norm, and the fields of its Stats."""
    results = try_forward_with_statistics(
        x, weight, bias, axis, eps, out, centered, zero_centered_weight
    )
    if results is None:
        results = forward_with_statistics(
            x, weight, bias, axis, eps, out, centered, zero_centered_weight
        )
    return results


def norm_beside(
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
    if gate is None and residual is not None:
        call = (x, weight, bias, axis, eps, out, centered, zero_centered_weight, residual, total)
        if save:
            results = try_forward_with_statistics(*call)
            if results is not None:
                return results
        else:
            pair = try_forward(*call)
            if pair is not None:
                return *pair, ()
    return forward_beside(
        *(x, residual, gate, weight, bias, axis, eps, out, total, centered, zero_centered_weight),
        save=save,
    )


def norm_backward(
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
    """Return (dx, dweight, dbias), of layer norm if `centered`, else of RMS norm."""
    gradients = None
    if type(stats) is Stats and stats.parameter_shapes is None and stats.gating is None:
        gradients = try_backward(
            dy,
            x,
            stats.mean,
            stats.rstd,
            stats.residual if centered else None,
            weight,
            stats.axis,
            stats.eps,
            stats.parameter_type,
            need_dx,
            need_dweight,
            need_dbias,
            centered,
            zero_centered_weight,
            dtotal,
        )
    if gradients is None:
        gradients = backward(
            *(dy, x, stats, weight, need_dx, need_dweight, need_dbias),
            *(centered, zero_centered_weight, dtotal),
        )
    return gradients
