"""The contract's measure: how far a result is from the definition, in ulp.

    error = |result - exact| / ulp(scale)

`exact` is `layernorm.reference` in float64, and in np.longdouble when the result is float64.
ulp(scale) is the distance between neighboring numbers of a type at `scale`, and never less than the
type's smallest subnormal. The scale, in each element, is

    y                 max(|weight| * max(1, |xhat|), |bias|, |y|)
    dx                rstd * max(1, |xhat|) * (largest |dy * weight| of the row) + |dtotal|
    dweight           sum over rows of |dy| * max(1, |xhat|)
    dbias             sum over rows of |dy|

With a gate, act stands for act(gate) and slope for the magnitudes of the terms of its derivative.
Where the norm comes first, dy * act stands for dy above, and the scales of y and dgate are

    y                 (y's scale above) * |act|
    dgate             |dy| * (y's scale above) * slope

Where the gate comes first, u = x * act stands for x, and what rounding u costs is forgiven: kappa =
max(1, rstd * root mean square of u) multiplies every scale but dbias's. du is then dx above:

    dx                (du's scale) * |act|
    dgate             (du's scale) * |x| * slope

Where act or slope are subnormal, and so known to few digits, the ulp is theirs times the rest.

For 16-bit y the ulp is that of the 16-bit type. For 16-bit dx and dgate, and for dweight and dbias
of any type, it is that of the compute type (float32; float64 for float64), and the last rounding,
to the result's own type, is forgiven: the error is that of the number nearest to `exact` that
rounds to the result. BOUNDS has the largest errors that the contract allows, GATED_BOUND those with
a gate.

Each function returns the largest error of all elements as a float, 0.0 if there are none. It is inf
where the result is NaN and the reference is not, or the reverse. A result of inf is right where the
exact value rounds to inf. bfloat16 is ml_dtypes', which only bfloat16 results need.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from layernorm import reference
from layernorm.reference import Axis
from layernorm.spec import compute_type, normalize_axes, normalized_shape, varying_axes

Array: TypeAlias = npt.NDArray[Any]
Kind: TypeAlias = Literal["layer_norm", "rms_norm"]


class Bounds(NamedTuple):
    """The largest errors that the contract allows, as measured by this module."""

    y: float
    dx: float
    parameter: float


BOUNDS = {
    "float32": Bounds(y=5, dx=5, parameter=4),
    "float64": Bounds(y=5, dx=5, parameter=5),
    "float16": Bounds(y=0.51, dx=5, parameter=4),
    "bfloat16": Bounds(y=0.51, dx=5, parameter=4),
}

# Of y (but 16-bit y, whose bound is that without a gate) and of every gradient.
GATED_BOUND = 10


class _Format(NamedTuple):
    precision: int  # bits of the significand
    min_exponent: int  # of the smallest normal number
    max_exponent: int  # every finite number is below 2**max_exponent


_FORMATS = {
    "float16": _Format(11, -14, 16),
    "bfloat16": _Format(8, -126, 128),
    "float32": _Format(24, -126, 128),
    "float64": _Format(53, -1022, 1024),
}


def y_error(
    y: npt.ArrayLike,
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    kind: Kind = "layer_norm",
    zero_centered_weight: bool = False,
) -> float:
    """Return the worst error of y = `kind`(x, weight, bias), in ulp of y's type."""
    y = np.asarray(y)
    exact = _type_name(y) == "float64"
    xhat = reference.normalize(x, axis=axis, eps=eps, centered=_is_centered(kind), exact=exact)
    _require_shape("y", y, xhat.shape)
    affine = functools.partial(
        reference.scale_and_shift,
        axis=axis,
        zero_centered_weight=zero_centered_weight,
        exact=exact,
    )
    expected = affine(xhat, weight, bias)
    with np.errstate(all="ignore"):
        weighted = np.abs(affine(np.maximum(1, np.abs(xhat)), weight))
        shift = np.abs(affine(np.zeros_like(xhat), None, bias))
        scale = np.maximum(np.maximum(weighted, shift), np.abs(expected))
    return _worst(_distance(y, expected), ulp(scale, _type_name(y)))


def dx_error(
    dx: npt.ArrayLike,
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    dtotal: npt.ArrayLike | None = None,
    axis: Axis = -1,
    eps: float = 1e-5,
    kind: Kind = "layer_norm",
    zero_centered_weight: bool = False,
) -> float:
    """Return the worst error of dx, in ulp of float32 (of float64 if dx is float64).

    For 16-bit dx the rounding from float32 is forgiven. With `dtotal`, dx is a sum, and its
    rounding is forgiven for every type. Rows where the function has no derivative
    are not judged: rows of equal elements (RMS norm: of zeros) if eps = 0. Where a row of dy is not
    finite, any NaN or infinity is right.
    """
    dx = np.asarray(dx)
    name = _type_name(dx)
    exact = name == "float64"
    centered = _is_centered(kind)
    _require_shape("dx", dx, np.shape(x))
    xhat = reference.normalize(x, axis=axis, eps=eps, centered=centered, exact=exact)
    _, _, rstd = reference.statistics(x, axis, eps, centered=centered, exact=exact)
    affine: dict[str, Any] = {
        "axis": axis,
        "zero_centered_weight": zero_centered_weight,
        "exact": exact,
    }
    g = reference.scale_and_shift(np.broadcast_to(dy, dx.shape), weight, **affine)
    largest_g = np.abs(g).max(axis=normalize_axes(axis, dx.ndim), keepdims=True, initial=0)
    backward = reference.layer_norm_backward if centered else reference.rms_norm_backward
    expected = backward(dy, x, weight, dtotal=dtotal, eps=eps, **affine)[0]
    with np.errstate(all="ignore"):
        scale = rstd * np.maximum(1, np.abs(xhat)) * largest_g
        if dtotal is not None:
            scale = scale + np.abs(np.asarray(dtotal).astype(scale.dtype))
    dy_not_finite = np.isnan(expected) & ~np.isnan(xhat)
    dx = np.where(dy_not_finite & ~np.isfinite(dx), dx.dtype.type(np.nan), dx)
    is_rounded = dtotal is not None or name in ("float16", "bfloat16")
    distance = _distance(dx, expected, forgive_rounding=is_rounded)
    judged = np.broadcast_to(~np.isposinf(rstd), dx.shape)
    return _worst(distance[judged], ulp(scale, compute_type(name))[judged])


def dweight_error(
    dweight: npt.ArrayLike,
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    kind: Kind = "layer_norm",
) -> float:
    """Return the worst error of dweight = sum over rows of dy * xhat: see `parameter_error`.

    The scale of a term is |dy| * max(1, |xhat|), as for y and dx: xhat is accurate to a few ulp of
    1, however small it is in a column.
    """
    exact = _type_name(np.asarray(dweight)) == "float64"
    xhat = reference.normalize(x, axis=axis, eps=eps, centered=_is_centered(kind), exact=exact)
    with np.errstate(all="ignore"):
        widened_dy = np.asarray(dy).astype(np.float64)
        scales = np.abs(widened_dy) * np.maximum(1, np.abs(xhat))
        return parameter_error(dweight, widened_dy * xhat, scales, axis=axis)


def dbias_error(dbias: npt.ArrayLike, dy: npt.ArrayLike, *, axis: Axis = -1) -> float:
    """Return the worst error of dbias = sum over rows of dy: see `parameter_error`."""
    return parameter_error(dbias, dy, axis=axis)


def parameter_error(
    gradient: npt.ArrayLike,
    terms: npt.ArrayLike,
    scales: npt.ArrayLike | None = None,
    *,
    axis: Axis = -1,
) -> float:
    """Return the worst error of gradient = sum of terms over the rows that share a parameter.

    In ulp of float32 (of float64 if the gradient is float64) at the sum of `scales`, by default of
    |terms|; the rounding to the gradient's type is forgiven.

    Args:
        gradient: array of the normalized shape, or of one that broadcasts against x's.
        terms: array with the shape of x, exact or nearly so: float64, np.longdouble for float64.
        scales: array with the shape of x: the magnitudes to measure errors against.
        axis: the normalized axes of x.
    """
    gradient, terms = np.asarray(gradient), np.asarray(terms)
    name = _type_name(gradient)
    if terms.dtype != np.longdouble:
        terms = terms.astype(np.float64)
    if name == "float64":
        terms = terms.astype(np.longdouble)
    axes = normalize_axes(axis, terms.ndim)
    varying = varying_axes(gradient.shape, terms.shape, axes)
    _require_shape(
        "the gradient",
        gradient,
        normalized_shape(terms.shape, axes) if varying is None else gradient.shape,
    )
    summed = [each for each in range(terms.ndim) if each not in (*axes, *(varying or ()))]
    rows = math.prod(terms.shape[each] for each in summed)

    def sum_of_rows(values: Array) -> Array:
        columns = np.moveaxis(values, summed, range(-len(summed), 0))
        columns = np.ascontiguousarray(columns)  # contiguous: summed pairwise
        total: Array = columns.reshape(*gradient.shape, rows).sum(axis=-1)
        return total

    with np.errstate(all="ignore"):
        expected = sum_of_rows(terms)
        scale = sum_of_rows(np.abs(terms) if scales is None else np.asarray(scales))
    distance = _distance(gradient, expected, forgive_rounding=True)
    return _worst(distance, ulp(scale, compute_type(name)))


def gated_errors(
    results: dict[str, npt.NDArray[Any] | None],
    x: npt.ArrayLike,
    gate: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    dy: npt.ArrayLike | None = None,
    *,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: Axis = -1,
    eps: float = 1e-5,
    kind: Kind = "layer_norm",
    zero_centered_weight: bool = False,
) -> dict[str, float]:
    """Return the worst error of each result of a gated norm, by name.

    Args:
        results: those of "y", "dx", "dweight", "dbias" and "dgate" to judge; dy is needed for all
            but y. Rows whose rstd is infinite are not judged.
        x, gate, weight, bias, dy, and the keywords: of the call.
    """
    given = {name: np.asarray(each) for name, each in results.items() if each is not None}
    name = _type_name(np.asarray(x))
    exact, compute, centered = name == "float64", compute_type(name), _is_centered(kind)
    wide = np.longdouble if exact else np.float64
    affine: dict[str, Any] = {
        "axis": axis,
        "zero_centered_weight": zero_centered_weight,
        "exact": exact,
    }
    gating: dict[str, Any] = {"activation": activation, "norm_before_gate": norm_before_gate}
    values, dy = (
        np.asarray(0 if e is None else e).astype(np.float64).astype(wide) for e in (x, dy)
    )
    act, _, slope = reference.activate(gate, activation, exact=exact)
    with np.errstate(all="ignore"):
        u = values if norm_before_gate else values * act
        dn = np.broadcast_to(dy * act if norm_before_gate else dy, u.shape)
        xhat = reference.normalize(u, axis=axis, eps=eps, centered=centered, exact=exact)
        mean, var, rstd = reference.statistics(u, axis, eps, centered=centered, exact=exact)
        axes = normalize_axes(axis, u.ndim)
        size = np.maximum(1, np.abs(xhat))
        kappa = np.ones_like(rstd)
        if not norm_before_gate:
            kappa = np.maximum(1, rstd * np.sqrt(var + np.square(mean)))
        of_y = np.abs(reference.scale_and_shift(size, weight, **affine))
        shift = np.abs(reference.scale_and_shift(np.zeros_like(xhat), None, bias, **affine))
        n = reference.scale_and_shift(xhat, weight, bias, **affine)
        of_y = np.maximum(np.maximum(of_y, shift), np.abs(n)) * kappa
        g = reference.scale_and_shift(dn, weight, **affine)
        of_du = rstd * size * np.abs(g).max(axis=axes, keepdims=True, initial=0) * kappa
        scales = {
            "y": (of_y, np.abs(act) if norm_before_gate else np.ones_like(act)),
            "dx": (of_du, np.ones_like(act) if norm_before_gate else np.abs(act)),
            "dgate": (np.abs(dy) * of_y if norm_before_gate else of_du * np.abs(values), slope),
        }
        terms = {
            "dweight": (dn * xhat, np.abs(dn) * size * kappa),
            "dbias": (dn, np.abs(dn)),
        }
    expected = {"y": reference.gated_norm(kind, x, gate, weight, bias, eps=eps, **affine, **gating)}
    gradients = reference.gated_norm_backward(
        kind, dy, x, gate, weight, bias, eps=eps, **affine, **gating
    )
    expected |= {"dx": gradients[0], "dgate": gradients[3]}
    judged = np.broadcast_to(~np.isposinf(rstd), u.shape)
    errors = {}
    for each, result in given.items():
        if each in terms:
            errors[each] = parameter_error(result, *terms[each], axis=axis)
            continue
        _require_shape(each, result, u.shape)
        scale, factor = scales[each]
        forgive = each != "y" and name in ("float16", "bfloat16")
        distance = _distance(result, expected[each], forgive_rounding=forgive)
        own = name if each == "y" else compute
        with np.errstate(all="ignore"):
            unit = np.maximum(ulp(scale * factor, own), scale * ulp(factor, compute))
        if own != compute:
            unit = ulp(scale * factor, own)
        errors[each] = _worst(distance[judged], unit[judged])
    return errors


def ulp(scale: Array, name: str) -> Array:
    """Return the spacing of the numbers of type `name` at |scale|, without an upper limit.

    2**(floor(log2(|scale|)) + 1 - precision), and at least the smallest subnormal.
    """
    kind = _FORMATS[name]
    exponent = np.where(scale == 0, kind.min_exponent, np.frexp(scale)[1] - 1)
    exponent = np.maximum(exponent, kind.min_exponent) + 1 - kind.precision
    spacing: Array = np.ldexp(np.ones_like(scale), exponent)
    return spacing


def _distance(result: Array, expected: Array, *, forgive_rounding: bool = False) -> Array:
    """Return |result - expected|, inf where only one is NaN, 0 where both are.

    If `forgive_rounding`, the distance from expected to the nearest number that rounds to result.
    """
    kind = _FORMATS[_type_name(result)]
    widened = result.astype(np.float64).astype(expected.dtype)
    with np.errstate(all="ignore"):
        # count an infinite result as the number that would follow the largest
        overflow = np.ldexp(expected.dtype.type(1), kind.max_exponent)
        overflow = np.maximum(overflow, np.where(np.isfinite(expected), np.abs(expected), np.inf))
        stands_for = np.where(np.isinf(widened), np.copysign(overflow, widened), widened)
        distance = np.abs(stands_for - expected)
        if forgive_rounding:
            toward_zero = (expected < stands_for) == (stands_for > 0)
            magnitude = np.abs(stands_for)
            magnitude = np.where(toward_zero, np.nextafter(magnitude, 0), magnitude)
            distance = np.maximum(distance - ulp(magnitude, _type_name(result)) / 2, 0)
    same = (widened == expected) | (np.isnan(widened) & np.isnan(expected))
    return np.where(same, 0, np.where(np.isnan(distance), np.inf, distance))


def _worst(distance: Array, unit: Array) -> float:
    return float((distance / unit).max(initial=0))


def _is_centered(kind: Kind) -> bool:
    if kind not in ("layer_norm", "rms_norm"):
        raise ValueError(f'kind is {kind!r}, expected "layer_norm" or "rms_norm"')
    return kind == "layer_norm"


def _type_name(result: Array) -> str:
    if result.dtype.name not in _FORMATS:
        raise TypeError(f"the result has type {result.dtype}, expected one of {list(_FORMATS)}")
    return result.dtype.name


def _require_shape(name: str, result: Array, shape: tuple[int, ...]) -> None:
    # broadcasting would hide a wrong shape
    if result.shape != shape:
        raise ValueError(f"{name} has shape {result.shape}, expected {shape}")
