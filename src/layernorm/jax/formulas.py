"""The definition in jax.numpy, for devices that have no kernels of ours: accurate, not tuned.

Rows are scaled by a power of two, so that no sum leaves the type's range. Rows are centered twice,
so that a row far from zero keeps its digits. Long sums are pairwise.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from layernorm import spec
from layernorm.jax.definition import Definition, compute_type
from layernorm.jax.gate import Factors, factors_of
from layernorm.jax.primitives import Saved, present, saved_in, spaced

# From the means of parts, and the power of their scale or None, to those of whole rows.
Merge = Callable[[Sequence[Array], Array | None], tuple[list[Array], Any]]

# Up to this many terms are left to jnp.sum, which adds in an order of the compiler's choice.
_SHORT = 32


def total(v: Array, axes: tuple[int, ...], short: int = _SHORT) -> Array:
    """Sum pairwise over the axes, which are kept as size 1: the error grows with log2(n)."""
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(v.shape))
    if not axes:
        return v
    v = jnp.moveaxis(v, axes, range(-len(axes), 0))
    v = v.reshape(*v.shape[: -len(axes)], -1)
    while isinstance(v.shape[-1], int) and v.shape[-1] > short:  # exports have symbolic sizes
        half = (v.shape[-1] + 1) // 2
        rest = v[..., half:]
        rest = jnp.pad(rest, [(0, 0)] * (v.ndim - 1) + [(0, half - rest.shape[-1])])
        v = v[..., :half] + rest
    return v.sum(-1).reshape(kept)


def _row_sums(v: Array, definition: Definition) -> Array:
    """Sum each row; a part of it in an order that does not follow the number of rows."""
    return total(v, definition.axes, 1 if definition.across else _SHORT)


def exponent(v: Array, axes: tuple[int, ...]) -> Array:
    """Find e so that the largest |v| over the axes is below 2**e and near it."""
    largest = jnp.abs(v).max(axes, keepdims=True)
    least = jnp.finfo(v.dtype).minexp
    power = jnp.where(largest > 0, jnp.frexp(jnp.where(largest > 0, largest, 1))[1], least)
    return jnp.where(jnp.isfinite(largest), power, 0)


def times_power(v: Array, power: Array) -> Array:
    """Return v * 2**power, by two factors: a single one could be out of range."""
    half = power // 2
    one = jnp.ones((), v.dtype)
    return v * jnp.ldexp(one, half) * jnp.ldexp(one, power - half)


class Moments(NamedTuple):
    """A row's mean, and the mean square of the centered row, each with a scale of its own.

    The mean is (mean + residual) * 2**mean_power, the mean square square * 4**power.
    """

    mean: Array
    residual: Array
    square: Array
    mean_power: Array
    power: Array


def centered(x: Array, definition: Definition) -> tuple[Array, Moments]:
    """Return (x - mean) / 2**power, and the moments. In RMS norm the mean is 0."""
    axes, count = definition.axes, definition.cols(x.shape)
    mean_power = exponent(x, axes)
    rest = times_power(x, -mean_power)
    mean = residual = jnp.zeros_like(mean_power, x.dtype)
    if definition.centered:
        near = _mean_or_constant(rest, definition, count)
        rest = rest - near
        more = _row_sums(rest, definition) / count
        rest = rest - more
        mean = near + more
        residual = (near - mean) + more
    power = jnp.maximum(exponent(rest, axes) + mean_power, power_of_eps(definition.eps))
    rest = times_power(rest, mean_power - power)
    square = _row_sums(rest * rest, definition) / count
    return rest, Moments(mean, residual, square, mean_power, power)


def _mean_or_constant(v: Array, definition: Definition, count: int) -> Array:
    """Return the mean; for a constant row exactly the constant, without a sum's rounding."""
    highest, lowest = (each(definition.axes, keepdims=True) for each in (v.max, v.min))
    return jnp.where(highest == lowest, highest, _row_sums(v, definition) / count)


def power_of_eps(eps: float) -> int:
    """Find the least power that variances may be scaled by without eps overflowing."""
    return math.frexp(eps)[1] // 2 if eps else -(10**4)


def _scaled_eps(eps: float, power: Array, dtype: Any) -> Array:
    return times_power(times_power(jnp.asarray(eps, dtype), -power), -power)


def rstd_of(moments: Moments, eps: float) -> Array:
    """Return 2**power / sqrt(var + eps); 0 where that is a division by zero."""
    variance = moments.square + _scaled_eps(eps, moments.power, moments.square.dtype)
    return jnp.where(variance == 0, 0, 1 / jnp.sqrt(variance))


def scaled_and_shifted(
    xhat: Array, weight: Array | None, bias: Array | None, definition: Definition
) -> Array:
    """Return xhat * weight + bias."""
    y = xhat
    if weight is not None:
        y = y * _weight(weight, xhat, definition)
    if bias is not None:
        y = y + definition.spread(bias.astype(y.dtype), y.ndim)
    return y


def _weight(weight: Array, like: Array, definition: Definition) -> Array:
    widened = definition.spread(weight.astype(like.dtype), like.ndim)
    return 1 + widened if definition.zero_centered_weight else widened


def forward(
    *operands: Array,
    definition: Definition,
    has_addend: bool,
    has_weight: bool,
    has_bias: bool,
    with_statistics: bool,
    merged: Callable[[Array, Moments], tuple[Array, Moments]] | None = None,
    largest: Callable[[Array], Array] | None = None,
) -> list[Array]:
    """Return y, with an addend total, and the statistics if `with_statistics`.

    Quantized, return what `quantized` does. Where x holds parts of rows, `merged` turns the results
    of `centered` into those of whole rows, and `largest` does so with the largest |y|.
    """
    given = (True, has_addend, definition.has_gate, has_weight, has_bias, definition.has_scale)
    x, addend, gate, weight, bias, scale = spaced(operands, given)
    totals = []
    if addend is not None:
        # XLA may drop a rounding that another operation undoes, and y is that of the stored sum.
        x = jax.lax.optimization_barrier(x + addend)
        totals = [x]
    dtype = compute_type(x.dtype)
    factors = factors_of(gate, definition.gating, dtype)
    rest, moments = centered(factors.before(x.astype(dtype)), definition)
    if merged is not None:
        rest, moments = merged(rest, moments)
    rstd = rstd_of(moments, definition.eps)
    y = factors.after(scaled_and_shifted(rest * rstd, weight, bias, definition)).astype(x.dtype)
    if definition.quantizing is not None:
        return quantized(y, scale, definition, largest)
    statistics = statistics_of(moments, rstd, definition) if with_statistics else []
    return [y, *totals, *statistics]


def quantized(
    y: Array,
    scale: Array | None,
    definition: Definition,
    largest: Callable[[Array], Array] | None = None,
) -> list[Array]:
    """Return q, and the scales of the rows; or with a given scale, which broadcasts, q alone.

    XLA is kept from dropping the rounding of y.
    """
    assert definition.quantizing is not None
    dtype, name = compute_type(y.dtype), definition.quantizing.dtype
    most = spec.QUANTIZED_TYPES[name]
    y = jax.lax.optimization_barrier(y).astype(dtype)
    scales = []
    if scale is None:
        of_rows = jnp.abs(y).max(definition.axes, keepdims=True)
        of_rows = of_rows if largest is None else largest(of_rows)
        scale = jnp.maximum(_divided(of_rows, most), jnp.finfo(dtype).smallest_normal)
        scales = [scale.squeeze(definition.axes)]
    v = _divided(y, scale)
    if name == "int8":
        v = jnp.where(jnp.isnan(v), 0, jnp.clip(jnp.round(v), -128, 127))
    else:
        v = _rounded(jnp.clip(v, -most, most), jnp.finfo(name))
    return [v.astype(name), *scales]


def _divided(v: Array, by: Array | float) -> Array:
    """Divide by what is no constant: instead, XLA would multiply by the rounded inverse of one."""
    return v / jnp.where(jnp.isnan(v), v, by)


def _rounded(v: Array, float8: Any) -> Array:
    """Round to the nearest number of a float8, ties to even.

    On some devices XLA's own conversion rounds twice, to float16 first.
    """
    step = 2.0 ** (float8.minexp - float8.nmant)  # between its subnormal numbers
    reduced = jax.lax.reduce_precision(v, jnp.finfo(v.dtype).nexp, float8.nmant)
    return jnp.where(jnp.abs(v) < 2.0**float8.minexp, jnp.round(v / step) * step, reduced)


def statistics_of(moments: Moments, rstd: Array, definition: Definition) -> list[Array]:
    """Return mean, rstd and residual, unscaled, as they are saved; rstd alone for RMS norm."""
    rstd = times_power(rstd, -moments.power)
    means = [times_power(each, moments.mean_power) for each in (moments.mean, moments.residual)]
    every = [means[0], rstd, means[1]] if definition.centered else [rstd]
    return [each.squeeze(definition.axes) for each in every]


def backward(
    *operands: Array,
    definition: Definition,
    has_dtotal: bool,
    need: tuple[bool, ...],
    has_weight: bool,
    has_bias: bool,
    parameter_type: Any,
) -> list[Array]:
    """Return those of dx, dweight, dbias and dgate that are needed.

    The statistics are recomputed: the saved ones are unscaled, and may be out of range.
    """
    count = 1 + has_dtotal
    dy, dtotal = spaced(operands[:count], (True, has_dtotal))
    saved = saved_in(operands[count:], definition, has_weight=has_weight, has_bias=has_bias)
    dtype = compute_type(saved.x.dtype)
    factors = factors_of(saved.gate, definition.gating, dtype)
    scaled, moments = centered(factors.before(saved.x.astype(dtype)), definition)
    rstd = rstd_of(moments, definition.eps)
    return gradients(
        dy,
        scaled * rstd,
        rstd,
        saved,
        factors,
        definition,
        x_power=moments.power,
        dtotal=dtotal,
        need=need,
        parameter_type=parameter_type,
    )


def _centered_and_projected(
    g: Array,
    power: Array,
    xhat: Array,
    rest_of_one: Array,
    merged: Merge | None,
    definition: Definition,
) -> tuple[Array, Array, Array]:
    """Return v, c and power with dx = rstd * (v - c * xhat) * 2**power, where g is scaled likewise.

    dx may be small by cancellation, so the roundings of the first means are projected too.
    `rest_of_one` is 1 - mean(xhat^2) = eps * rstd^2.
    """

    def means(v: Array) -> list[Array]:
        every = [v, v * xhat] if definition.centered else [v * xhat]
        return [_row_sums(each, definition) / definition.cols(v.shape) for each in every]

    def without(v: Array, mean: Sequence[Array]) -> Array:
        return v - mean[0] if mean else v

    *mean, inner = means(g)
    if merged is not None:
        (*mean, inner), whole = merged([*mean, inner], power)
        g, power = times_power(g, power - whole), whole
    v = without(g, mean) - xhat * inner
    *mean, rest = means(v)
    if merged is not None:
        (*mean, rest), _ = merged([*mean, rest], None)
    return without(v, mean), rest - inner * rest_of_one, power


def gradients(
    dy: Array,
    xhat: Array,
    rstd: Array,
    saved: Saved,
    factors: Factors,
    definition: Definition,
    *,
    x_power: Array,
    dtotal: Array | None,
    need: tuple[bool, ...],
    parameter_type: Any,
    merged: Merge | None = None,
) -> list[Array]:
    """Return those of dx, dweight, dbias and dgate that are needed.

    `rstd` is scaled by 2**x_power. For dx, each row of dy, times the gate where that is last, is
    scaled by a power of two, and dtotal is added. Where x holds parts of rows, `merged` turns the
    means of the parts, and the power of their scale, into those of whole rows.
    """
    widened = dy.astype(xhat.dtype)
    dn = factors.after(widened)
    need_dx, need_dweight, need_dbias, need_dgate = need
    du = dx = dweight = dbias = dgate = None
    if need_dx or (need_dgate and not factors.norm_first):
        dy_power = exponent(dn, definition.axes)
        g = times_power(dn, -dy_power)
        if saved.weight is not None:
            g = g * _weight(saved.weight, g, definition)
        rest_of_one = _scaled_eps(definition.eps, x_power, rstd.dtype) * rstd * rstd
        v, c, dy_power = _centered_and_projected(g, dy_power, xhat, rest_of_one, merged, definition)
        du = times_power(rstd * (v - c * xhat), dy_power - x_power)
    if du is not None and need_dx:
        dx = factors.before(du)
        dx = (dx if dtotal is None else dx + dtotal.astype(dx.dtype)).astype(dy.dtype)
    if need_dgate:
        n = scaled_and_shifted(xhat, saved.weight, saved.bias, definition)
        by_gate = factors.by_gate(saved.x.astype(n.dtype), n)
        dgate = ((widened if factors.norm_first else du) * by_gate).astype(dy.dtype)
    summed = definition.summed(dy.ndim)
    finish = functools.partial(_parameter, definition=definition, parameter_type=parameter_type)
    if need_dweight or need_dbias:
        power = exponent(dn, summed)
        scaled = times_power(dn, -power)
        if need_dweight:
            dweight = finish(times_power(total(scaled * xhat, summed), power))
        if need_dbias:
            dbias = finish(times_power(total(scaled, summed), power))
    return present(dx, dweight, dbias, dgate)


def _parameter(gradient: Array, *, definition: Definition, parameter_type: Any) -> Array:
    return definition.compact(gradient).astype(parameter_type)
