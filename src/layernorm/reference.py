"""Layer normalization and RMS normalization by definition, in float64 NumPy.

Each position outside the normalized axes is a *row* of n elements. For one row,

    mean = sum(x) / n
    var  = sum((x - mean)**2) / n
    rstd = 1 / sqrt(var + eps)
    xhat = (x - mean) * rstd
    y    = xhat * weight + bias

RMS normalization is the same with mean = 0 and no bias. With g = dy * weight, the gradients are

    dx      = rstd * (g - mean(g) - xhat * mean(g * xhat))      RMS norm: without mean(g)
    dweight = sum over rows of dy * xhat
    dbias   = sum over rows of dy

Weight and bias have the normalized shape: x's sizes along the normalized axes. Or they broadcast
against x, with those sizes, and vary along kept axes too: adaptive layer norm has a weight for each
sample, per-head norm one for each head. A sum over rows is then one over the rows that share a
parameter.

With a residual, x is first replaced by total = x + residual, rounded to the type in which it is
stored. Where the loss depends on total in another way too, with gradient dtotal, dx is the sum of
both, and is the gradient of x and of the residual.

With a gate, y = n * act(gate) for the norm n of x, or y is the norm of u = x * act(gate). The
activation is silu(z) = z * sigmoid(z) or sigmoid(z) = 1 / (1 + exp(-z)). The gradients are those of
the product:

    norm first     n's, with dy * act(gate) for dy;  dgate = dy * n * act'(gate)
    gate first     dx = du * act(gate),  dgate = du * x * act'(gate)

docs/derivation.md derives them. The code below is these lines, with three precautions that make
them right for every finite float64:

- Each row is first divided by a power of two, which is exact, and the result multiplied by it. So
  1e308 does not overflow when squared, and 1e-320 does not vanish.
- The mean is computed in two steps: a rounded mean m, then the mean of x - m, which corrects the
  rounding. docs/derivation.md explains why a row far from zero needs this. It also makes the mean
  of a row of equal elements exact, so that such a row gives bias.
- Where var + eps = 0 (a row of equal elements, with eps = 0), xhat is 0.

A row with a NaN or an infinity is NaN throughout. Arguments may have any real type. The result is
float64; with `exact=True` everything is computed and returned in np.longdouble, whose eleven extra
bits suffice to judge float64. This module favors clarity; `layernorm.numpy` is the fast one.

Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450; Zhang and Sennrich 2019, arXiv:1910.07467.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from layernorm.spec import normalize_axes, normalized_shape, statistics_shape

Array: TypeAlias = npt.NDArray[Any]
Axis: TypeAlias = int | Sequence[int]


def layer_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    zero_centered_weight: bool = False,
    exact: bool = False,
) -> Array:
    """Normalize `x` over `axis` to zero mean and unit variance, then scale and shift.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with the biased variance.

    Args:
        x: array of any shape.
        weight, bias: arrays of the normalized shape, (x.shape[a] for a in sorted axes), or None.
        axis: int or ints, in any order; need not be the last.
        eps: added to the variance, in units of x squared; at least 0.
        zero_centered_weight: multiply by 1 + weight.
        exact: compute and return np.longdouble.
    Returns: y, with x's shape, float64 (np.longdouble if `exact`).
    """
    xhat = normalize(x, axis=axis, eps=eps, exact=exact)
    return scale_and_shift(
        xhat, weight, bias, axis=axis, zero_centered_weight=zero_centered_weight, exact=exact
    )


def rms_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-6,
    zero_centered_weight: bool = False,
    exact: bool = False,
) -> Array:
    """Divide `x` by its root mean square over `axis`, then scale.

    y = x / sqrt(mean(x**2) + eps) * weight. Arguments and result: as for `layer_norm`.
    """
    xhat = normalize(x, axis=axis, eps=eps, centered=False, exact=exact)
    return scale_and_shift(
        xhat, weight, None, axis=axis, zero_centered_weight=zero_centered_weight, exact=exact
    )


def add(x: npt.ArrayLike, residual: npt.ArrayLike) -> Array:
    """Return total = x + residual, rounded once to x's type: what a fused call normalizes.

    The one result here that is not float64: y is the norm of the total that is stored.
    """
    x, residual = np.asarray(x), np.asarray(residual)
    # A sum in float64 has more than twice the digits of the other types: two roundings are one.
    with np.errstate(all="ignore"):
        total: Array = (x.astype(np.float64) + residual.astype(np.float64)).astype(x.dtype)
    return total


def quantize(
    y: npt.ArrayLike, dtype: str = "int8", scale: float | None = None
) -> tuple[Array, Array]:
    """Return q = y / scale in 8 bits, and the scales, of rows along the last axis.

    y is the norm as it is stored, in its own type. Both results are exact: the scale of a row,
    max|y| / m but at least the smallest normal number, is one division in the compute type, and
    y / scale is another, then rounded to nearest even among the numbers of the 8-bit type, which
    end at m (int8: -128 to 127). int8 has steps of 1; a float8 has steps of 2**(e - digits) from
    2**e on, and below its smallest normal number, 2**exponent, the steps that follow that. A NaN
    makes its row's scale NaN; in int8 it is 0. Both are returned as float64, which holds them.
    """
    least, greatest, digits, exponent = {
        "int8": (-128.0, 127.0, 0, 0),
        "float8_e4m3fn": (-448.0, 448.0, 3, -6),
        "float8_e5m2": (-57344.0, 57344.0, 2, -14),
    }[dtype]
    y = np.asarray(y)
    compute = np.float64 if y.dtype == np.float64 else np.float32
    y = y.astype(compute)
    with np.errstate(all="ignore"):
        if scale is None:
            largest = np.abs(y).max(axis=-1, keepdims=True, initial=0)
            floor = np.finfo(compute).smallest_normal
            scales = np.maximum(largest / compute(greatest), floor)
        else:
            scales = np.full((*y.shape[:-1], 1), compute(scale))
        quotient = (y / scales).astype(np.float64)
        step = np.ones_like(quotient)
        if digits:
            _, e = np.frexp(quotient)  # quotient = f * 2**e, 0.5 <= |f| < 1
            step = np.ldexp(1.0, np.maximum(e - 1, exponent) - digits)
        q = np.clip(np.rint(quotient / step) * step, least, greatest)
        return np.where(np.isnan(q) & (dtype == "int8"), 0.0, q), scales.astype(np.float64)


def layer_norm_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    dtotal: npt.ArrayLike | None = None,
    axis: Axis = -1,
    eps: float = 1e-5,
    zero_centered_weight: bool = False,
    parameter_shape: tuple[int, ...] | None = None,
    exact: bool = False,
) -> tuple[Array, Array, Array]:
    """Return the gradients (dx, dweight, dbias) of sum(dy * layer_norm(x, weight, bias)).

    The statistics are recomputed from `x`. dweight and dbias are returned whether or not there is
    a weight. They have `parameter_shape`, by default the weight's, or the normalized shape. dx is
    NaN in a row of equal elements if eps = 0, where the function is discontinuous, and in a row
    where dy is not finite. With `dtotal`, the gradient by which the loss depends on x in other
    ways, dx is the sum of both.
    """
    return _backward(
        *(dy, x, weight, dtotal, axis, eps, zero_centered_weight, parameter_shape, exact),
        centered=True,
    )


def rms_norm_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    dtotal: npt.ArrayLike | None = None,
    axis: Axis = -1,
    eps: float = 1e-6,
    zero_centered_weight: bool = False,
    parameter_shape: tuple[int, ...] | None = None,
    exact: bool = False,
) -> tuple[Array, Array]:
    """Return the gradients (dx, dweight) of sum(dy * rms_norm(x, weight)).

    dx = rstd * (g - xhat * mean(g * xhat)), with g = dy * weight. Otherwise as for
    `layer_norm_backward`; the row without a derivative is the row of zeros.
    """
    dx, dweight, _ = _backward(
        *(dy, x, weight, dtotal, axis, eps, zero_centered_weight, parameter_shape, exact),
        centered=False,
    )
    return dx, dweight


def activate(
    gate: npt.ArrayLike, activation: str = "silu", *, exact: bool = False
) -> tuple[Array, Array, Array]:
    """Return act(gate), its derivative, and the sum of the magnitudes of the derivative's terms.

    silu(z) = z * sigmoid(z), with derivative sigmoid(z) + z * sigmoid(z) * sigmoid(-z);
    sigmoid(z) = 1 / (1 + exp(-z)), with derivative sigmoid(z) * sigmoid(-z). At -infinity silu and
    its derivative are 0, their limits.
    """
    z = _real(gate, exact)
    with np.errstate(all="ignore"):
        e = np.exp(-np.abs(z))
        of_z, of_minus_z = (np.where(z < 0, a, b) / (1 + e) for a, b in ((e, 1), (1, e)))
        of_z, of_minus_z = (np.where(np.isnan(z), np.nan, each) for each in (of_z, of_minus_z))
        if activation == "sigmoid":
            return of_z, of_z * of_minus_z, of_z * of_minus_z
        bounded = np.clip(z, -20_000, 20_000)  # exp(-20_000) is 0 in every type
        term = bounded * of_z * of_minus_z
        return np.where(z == -np.inf, -0.0, z * of_z), of_z + term, of_z + np.abs(term)


def gated_norm(
    kind: str,
    x: npt.ArrayLike,
    gate: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: Axis = -1,
    eps: float = 1e-5,
    zero_centered_weight: bool = False,
    exact: bool = False,
) -> Array:
    """Return norm(x) * act(gate); if not `norm_before_gate`, norm(x * act(gate)).

    `kind` is "layer_norm" or "rms_norm"; the other arguments are as for `layer_norm`.
    """
    act, _, _ = activate(gate, activation, exact=exact)
    values = _real(x, exact)
    with np.errstate(all="ignore"):
        u = values if norm_before_gate else values * act
        xhat = normalize(u, axis=axis, eps=eps, centered=kind == "layer_norm", exact=exact)
        n = scale_and_shift(
            xhat, weight, bias, axis=axis, zero_centered_weight=zero_centered_weight, exact=exact
        )
        return n * act if norm_before_gate else n


def gated_norm_backward(
    kind: str,
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    gate: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: Axis = -1,
    eps: float = 1e-5,
    zero_centered_weight: bool = False,
    parameter_shape: tuple[int, ...] | None = None,
    exact: bool = False,
) -> tuple[Array, Array, Array, Array]:
    """Return the gradients (dx, dweight, dbias, dgate) of sum(dy * gated_norm(...)).

    dx and dgate have x's shape; dweight and dbias are as for `layer_norm_backward`.
    """
    act, slope, _ = activate(gate, activation, exact=exact)
    values, dy = _real(x, exact), _real(dy, exact)
    with np.errstate(all="ignore"):
        u = values if norm_before_gate else values * act
        dn = dy * act if norm_before_gate else dy
        du, dweight, dbias = _backward(
            *(dn, u, weight, None, axis, eps, zero_centered_weight, parameter_shape, exact),
            centered=kind == "layer_norm",
        )
        if not norm_before_gate:
            return du * act, dweight, dbias, du * values * slope
        xhat = normalize(u, axis=axis, eps=eps, centered=kind == "layer_norm", exact=exact)
        n = scale_and_shift(
            xhat, weight, bias, axis=axis, zero_centered_weight=zero_centered_weight, exact=exact
        )
        return du, dweight, dbias, dy * n * slope


def layer_norm_jvp(
    x: npt.ArrayLike,
    dx: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    dweight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    dbias: npt.ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    zero_centered_weight: bool = False,
    exact: bool = False,
) -> tuple[Array, Array]:
    """Return y and its directional derivative along the tangents (dx, dweight, dbias).

    dy = rstd * (dx - mean(dx) - xhat * mean(dx * xhat)) * weight + xhat * dweight + dbias

    A tangent of None is zero. `dweight` may be given without a `weight`, which is then 1.
    """
    y, dy = _jvp(x, dx, weight, dweight, axis, eps, zero_centered_weight, exact, centered=True)
    y = scale_and_shift(y, None, bias, axis=axis, exact=exact)
    dy = scale_and_shift(dy, None, dbias, axis=axis, exact=exact)
    return y, dy


def rms_norm_jvp(
    x: npt.ArrayLike,
    dx: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    dweight: npt.ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-6,
    zero_centered_weight: bool = False,
    exact: bool = False,
) -> tuple[Array, Array]:
    """Return y and its directional derivative along the tangents (dx, dweight).

    dy = rstd * (dx - xhat * mean(dx * xhat)) * weight + xhat * dweight
    """
    return _jvp(x, dx, weight, dweight, axis, eps, zero_centered_weight, exact, centered=False)


def normalize(
    x: npt.ArrayLike,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    centered: bool = True,
    exact: bool = False,
) -> Array:
    """Return xhat = (x - mean) * rstd; with `centered=False`, x * rstd with mean = 0."""
    values = _real(x, exact)
    layout = _Layout.of(values, axis)
    with np.errstate(all="ignore"):
        return layout.restore(_normalize_rows(layout.rows(values), eps, centered).xhat)


def scale_and_shift(
    xhat: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    axis: Axis = -1,
    zero_centered_weight: bool = False,
    exact: bool = False,
) -> Array:
    """Return xhat * weight + bias, the parameters along `axis`, or broadcast against xhat."""
    y = _real(xhat, exact)
    layout = _Layout.of(y, axis)
    with np.errstate(all="ignore"):
        if weight is not None:
            y = y * layout.along_axes(_effective(weight, zero_centered_weight, exact))
        if bias is not None:
            y = y + layout.along_axes(_real(bias, exact))
    return y


def statistics(
    x: npt.ArrayLike,
    axis: Axis = -1,
    eps: float = 1e-5,
    *,
    centered: bool = True,
    exact: bool = False,
) -> tuple[Array, Array, Array]:
    """Return mean, var and rstd, with x's shape except that the normalized axes have size 1.

    With `centered=False` the mean is 0 and var is the mean square. A variance too large for the
    type is infinite; so is the rstd of a row of equal elements if eps = 0.
    """
    values = _real(x, exact)
    layout = _Layout.of(values, axis)
    with np.errstate(all="ignore"):
        rows = _normalize_rows(layout.rows(values), eps, centered)
        mean = np.ldexp(rows.mean, rows.exponent)
        var = np.ldexp(rows.var, 2 * rows.exponent)
        rstd = np.ldexp(rows.rstd, -rows.exponent)
    mean, var, rstd = (part.reshape(layout.row_shape) for part in (mean, var, rstd))
    return mean, var, rstd


def layer_norm_eps_on_std(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-6,
    unbiased: bool = False,
) -> Array:
    """Return (x - mean) / (std + eps) * weight + bias: a variant, not layer norm.

    Here eps is in units of x. Many hand-written layer norms do this; The Annotated Transformer's
    does, with `unbiased=True`, which divides the variance by n - 1. A row of equal elements gives
    bias. docs/numerics.md shows how far the results are from `layer_norm`.
    """
    # (x - mean) / (s * std + eps) = xhat / (s + eps / std), with xhat of eps = 0
    s = math.sqrt(_bessel(x, axis)) if unbiased else 1.0
    _, _, rstd = statistics(x, axis, 0.0)
    divisor = s + eps * rstd if eps > 0 else s
    return scale_and_shift(normalize(x, axis=axis, eps=0.0) / divisor, weight, bias, axis=axis)


def layer_norm_unbiased(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
) -> Array:
    """Return (x - mean) / sqrt(n / (n - 1) * var + eps) * weight + bias: a variant, not layer norm.

    For n = 1 the unbiased variance is undefined and the result is NaN.
    """
    # sqrt(c * var + eps) = sqrt(c) * sqrt(var + eps / c), with c = n / (n - 1)
    c = _bessel(x, axis)
    return scale_and_shift(
        normalize(x, axis=axis, eps=eps / c) / math.sqrt(c), weight, bias, axis=axis
    )


def _backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None,
    dtotal: npt.ArrayLike | None,
    axis: Axis,
    eps: float,
    zero_centered_weight: bool,
    parameter_shape: tuple[int, ...] | None,
    exact: bool,
    *,
    centered: bool,
) -> tuple[Array, Array, Array]:
    values = _real(x, exact)
    layout = _Layout.of(values, axis)
    dy_rows = layout.rows(np.broadcast_to(_real(dy, exact), values.shape))
    one = np.ones((1, 1), values.dtype)
    factor = one
    if weight is not None:
        effective = _effective(weight, zero_centered_weight, exact)
        spread = np.broadcast_to(layout.along_axes(effective), values.shape)
        factor = layout.rows(spread)
        parameter_shape = parameter_shape or effective.shape
    if parameter_shape is None:
        parameter_shape = layout.normalized_shape
    shared = layout.shared_axes(parameter_shape)
    with np.errstate(all="ignore"):
        rows = _normalize_rows(layout.rows(values), eps, centered)
        dx = layout.restore(_differentiate(dy_rows, factor, rows, centered))
        if dtotal is not None:
            dx = dx + np.broadcast_to(_real(dtotal, exact), values.shape)
        dy_terms, xhat_terms = (
            _grouped(layout.restore(each), shared) for each in (dy_rows, rows.xhat)
        )
        dweight = _sum_over_rows(dy_terms, xhat_terms).reshape(parameter_shape)
        dbias = _sum_over_rows(dy_terms, one).reshape(parameter_shape)
    return dx, dweight, dbias


def _grouped(terms: Array, shared: tuple[int, ...]) -> Array:
    """Flatten the axes to sum over into the first, all others into the second."""
    moved = np.moveaxis(terms, shared, range(len(shared)))
    rows = math.prod(terms.shape[axis] for axis in shared)
    others = math.prod(moved.shape[len(shared) :])
    return np.ascontiguousarray(moved).reshape(rows, others)


def _jvp(
    x: npt.ArrayLike,
    dx: npt.ArrayLike,
    weight: npt.ArrayLike | None,
    dweight: npt.ArrayLike | None,
    axis: Axis,
    eps: float,
    zero_centered_weight: bool,
    exact: bool,
    *,
    centered: bool,
) -> tuple[Array, Array]:
    values = _real(x, exact)
    layout = _Layout.of(values, axis)
    dx_rows = layout.rows(np.broadcast_to(_real(dx, exact), values.shape))
    with np.errstate(all="ignore"):
        rows = _normalize_rows(layout.rows(values), eps, centered)
        dxhat = _differentiate(dx_rows, np.ones((1, 1), values.dtype), rows, centered)
        xhat, dy = layout.restore(rows.xhat), layout.restore(dxhat)
        y = xhat
        if weight is not None:
            factor = layout.along_axes(_effective(weight, zero_centered_weight, exact))
            y, dy = xhat * factor, dy * factor
        if dweight is not None:
            dy = dy + xhat * layout.along_axes(_real(dweight, exact))
    return y, dy


class _Normalized(NamedTuple):
    """Rows divided by 2**exponent: mean, var and rstd are those of the divided rows."""

    xhat: Array  # (rows, cols)
    mean: Array  # (rows, 1), as are the others
    var: Array
    rstd: Array
    exponent: Array


def _normalize_rows(x: Array, eps: float, centered: bool) -> _Normalized:
    exponent = _row_exponent(x, eps)
    x = np.ldexp(x, -exponent)
    mean = np.zeros_like(x, shape=(len(x), 1))
    deviation = x
    if centered:
        rounded = _mean(x)
        deviation = x - rounded
        residual = _mean(deviation)
        deviation = deviation - residual
        mean = rounded + residual
    var = _mean(deviation * deviation)
    sqrt_eps = np.ldexp(np.sqrt(x.dtype.type(eps)), -exponent)
    std = np.hypot(np.sqrt(var), sqrt_eps)  # sqrt(var + eps), for an eps of any size
    xhat = np.divide(deviation, std, out=np.zeros_like(x), where=std != 0)
    finite = np.isfinite(x).all(axis=-1, keepdims=True)
    xhat, mean, var, rstd = (np.where(finite, part, np.nan) for part in (xhat, mean, var, 1 / std))
    return _Normalized(xhat, mean, var, rstd, exponent)


def _differentiate(dy: Array, weight: Array, rows: _Normalized, centered: bool) -> Array:
    """Apply the derivative of xhat in x to g = dy * weight.

    rstd * (g - mean(g) - xhat * mean(g * xhat)). The matrix is symmetric, so this is both the
    backward (g a cotangent) and the forward mode (g a tangent).
    """
    g, exponent = _scaled_product(dy, weight, axis=-1)
    g = np.where(np.isfinite(g).all(axis=-1, keepdims=True), g, np.nan)
    projected = g - rows.xhat * _mean(g * rows.xhat)
    if centered:
        projected = projected - _mean(g)
    scaled = np.where(np.isfinite(rows.rstd), rows.rstd * projected, np.nan)
    derivative: Array = np.ldexp(scaled, exponent - rows.exponent)
    return derivative


def _sum_over_rows(a: Array, b: Array) -> Array:
    terms, exponent = _scaled_product(a, b, axis=0)
    # NumPy sums pairwise along contiguous memory only
    total: Array = np.ldexp(np.ascontiguousarray(terms.T).sum(axis=-1), exponent[0])
    return total


def _mean(rows: Array) -> Array:
    mean: Array = rows.sum(axis=-1, keepdims=True) / rows.shape[-1]
    return mean


def _row_exponent(x: Array, eps: float) -> Array:
    """Return e with |x| < 2**e in each row, large enough that sqrt(eps) / 2**e is finite."""
    largest = np.abs(x).max(axis=-1, keepdims=True, initial=0)
    exponent = np.where((largest > 0) & np.isfinite(largest), np.frexp(largest)[1], 0)
    if eps > 0:
        exponent = np.maximum(exponent, math.frexp(math.sqrt(eps))[1] - 500)
    return exponent


def _scaled_product(a: Array, b: Array, axis: int) -> tuple[Array, Array]:
    """Return p and e with p * 2**e = a * b, the largest |p| along `axis` between 1/4 and 1.

    Unlike a * b it neither overflows nor underflows.
    """
    (a_mantissa, a_exponent), (b_mantissa, b_exponent) = np.frexp(a), np.frexp(b)
    mantissa, exponent = a_mantissa * b_mantissa, a_exponent + b_exponent
    smallest = -(2**20)  # below any sum of two exponents; ldexp takes 32-bit ones
    largest = np.where(mantissa == 0, smallest, exponent).max(
        axis=axis, keepdims=True, initial=smallest
    )
    return np.ldexp(mantissa, exponent - largest), largest


def _bessel(x: npt.ArrayLike, axis: Axis) -> float:
    n = math.prod(_Layout.of(np.asarray(x), axis).normalized_shape)
    return n / (n - 1) if n > 1 else math.nan


def _effective(weight: npt.ArrayLike, zero_centered: bool, exact: bool) -> Array:
    return 1 + _real(weight, exact) if zero_centered else _real(weight, exact)


def _real(a: npt.ArrayLike, exact: bool) -> Array:
    array = np.asarray(a)
    if array.dtype.kind == "c":
        raise TypeError(f"expected a real array, got {array.dtype}: normalize the parts separately")
    if not exact:
        return array.astype(np.float64)
    if np.finfo(np.longdouble).nmant < 63:
        raise NotImplementedError(
            "exact=True needs an np.longdouble wider than float64, which this platform lacks: "
            "use exact=False, or judge float64 on another platform"
        )
    # bfloat16 converts to float64 only
    return array if array.dtype == np.longdouble else array.astype(np.float64).astype(np.longdouble)


class _Layout(NamedTuple):
    """An array as rows: `axes` moved last, in order, and flattened."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @classmethod
    def of(cls, x: Array, axis: Axis) -> _Layout:
        return cls(x.shape, normalize_axes(axis, x.ndim))

    @property
    def normalized_shape(self) -> tuple[int, ...]:
        return normalized_shape(self.shape, self.axes)

    @property
    def row_shape(self) -> tuple[int, ...]:
        return statistics_shape(self.shape, self.axes)

    def rows(self, x: Array) -> Array:
        moved = np.moveaxis(x, self.axes, range(-len(self.axes), 0))
        rows, cols = math.prod(self.row_shape), math.prod(self.normalized_shape)
        return np.ascontiguousarray(moved).reshape(rows, cols)

    def restore(self, rows: Array) -> Array:
        outer = tuple(size for a, size in enumerate(self.shape) if a not in self.axes)
        moved = rows.reshape(outer + self.normalized_shape)
        return np.ascontiguousarray(np.moveaxis(moved, range(-len(self.axes), 0), self.axes))

    def along_axes(self, parameter: Array) -> Array:
        """Reshape a parameter so that it broadcasts against x."""
        return parameter.reshape(self.spread_shape(parameter.shape))

    def spread_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape, with all axes of x, of a parameter of this shape."""
        if shape == self.normalized_shape:
            return tuple(size if a in self.axes else 1 for a, size in enumerate(self.shape))
        spread = (1,) * (len(self.shape) - len(shape)) + shape
        fits = len(spread) == len(self.shape) and all(
            mine == size or (mine == 1 and axis not in self.axes)
            for axis, (mine, size) in enumerate(zip(spread, self.shape, strict=True))
        )
        if not fits:
            raise ValueError(
                f"a parameter has shape {shape}, but x of shape {self.shape} normalized over axes "
                f"{self.axes} needs {self.normalized_shape}, or to broadcast against x with these"
            )
        return spread

    def shared_axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the axes along which all rows share a parameter of this shape."""
        sizes = enumerate(zip(self.spread_shape(shape), self.shape, strict=True))
        return tuple(a for a, (mine, size) in sizes if a not in self.axes and mine != size)
