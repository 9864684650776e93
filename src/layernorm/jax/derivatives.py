"""Tangents and gradients in differentiable operations of jax.numpy.

The kernels compute the first gradient (docs/derivation.md). Here J is the derivative of xhat with
respect to x, a symmetric operator on each row:

    J v = rstd * (v - mean(v) - xhat * mean(v * xhat))        RMS norm: without mean(v)

All operations are differentiable, so derivatives of any order follow. A gate is a factor before or
after the norm: see gate.py.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from layernorm.jax.definition import Definition, compute_type
from layernorm.jax.gate import Factors, factors_of
from layernorm.jax.primitives import Saved


class Rows(NamedTuple):
    """x normalized: xhat, rstd and the parameters, each of a shape that broadcasts against x."""

    x: Array  # widened
    factors: Factors
    xhat: Array  # of x times the gate, where that is first
    rstd: Array
    weight: Array | None  # None for ones
    bias: Array | None
    definition: Definition
    dtype: Any  # x's type

    def spread(self, parameter: Array) -> Array:
        """Widen a parameter (or its tangent), and reshape it to broadcast against x."""
        widened = parameter.astype(self.xhat.dtype)
        return self.definition.spread(widened, self.xhat.ndim)

    def mean(self, v: Array) -> Array:
        """Return the mean of each row."""
        return _mean(v, self.definition)

    def jacobian(self, v: Array) -> Array:
        """Return J v."""
        rest = v - self.mean(v) if self.definition.centered else v
        return self.rstd * (rest - self.xhat * self.mean(v * self.xhat))

    def times_weight(self, v: Array) -> Array:
        """Return v * weight."""
        return v if self.weight is None else v * self.weight

    def by_gate(self) -> Array:
        """Return the derivative of the gate's product with respect to the gate."""
        n = self.times_weight(self.xhat)
        return self.factors.by_gate(self.x, n if self.bias is None else n + self.bias)


def _mean(v: Array, definition: Definition) -> Array:
    own = v.mean(definition.axes, keepdims=True)
    return jax.lax.pmean(own, definition.across) if definition.across else own


def rows_of(saved: Saved, definition: Definition) -> Rows:
    """Normalize x by the definition, differentiably, without the statistics."""
    x, factors = _widened(saved, definition)
    d = factors.before(x)
    if definition.centered:
        # Twice: far from 0 the mean is rounded, and the second mean is that rounding error.
        d = d - jax.lax.stop_gradient(_mean(d, definition))
        d = d - _mean(d, definition)
    rstd = jax.lax.rsqrt(_mean(d * d, definition) + definition.eps)
    return _rows(x, factors, d * rstd, rstd, saved, definition)


def rows_from(saved: Saved, definition: Definition) -> Rows:
    """Normalize x by the statistics that the forward has saved."""
    x, factors = _widened(saved, definition)
    d = factors.before(x)
    spread = [definition.spread_rows(each) for each in saved.statistics]
    if definition.centered:
        mean, rstd, residual = spread
        d = (d - mean) - residual
    else:
        (rstd,) = spread
    return _rows(x, factors, d * rstd, rstd, saved, definition)


def _widened(saved: Saved, definition: Definition) -> tuple[Array, Factors]:
    dtype = compute_type(saved.x.dtype)
    return saved.x.astype(dtype), factors_of(saved.gate, definition.gating, dtype)


def _rows(
    x: Array, factors: Factors, xhat: Array, rstd: Array, saved: Saved, definition: Definition
) -> Rows:
    weight, bias = (
        None if each is None else definition.spread(each.astype(xhat.dtype), x.ndim)
        for each in (saved.weight, saved.bias)
    )
    if weight is not None and definition.zero_centered_weight:
        weight = 1 + weight
    return Rows(x, factors, xhat, rstd, weight, bias, definition, saved.x.dtype)


def forward_tangent(
    rows: Rows,
    x_tangent: Array | None,
    weight_tangent: Array | None,
    bias_tangent: Array | None,
    gate_tangent: Array | None,
) -> Array:
    """Return the tangent of y."""
    before = after = None  # the tangents of the norm's input and, of the gate alone, of its product
    if x_tangent is not None:
        before = rows.factors.before(x_tangent.astype(rows.xhat.dtype))
    if gate_tangent is not None:
        along = gate_tangent.astype(rows.xhat.dtype) * rows.by_gate()
        if rows.factors.norm_first:
            after = along
        else:
            before = along if before is None else before + along
    tangent = jnp.zeros_like(rows.xhat)
    if before is not None:
        tangent = rows.times_weight(rows.jacobian(before))
    if weight_tangent is not None:
        tangent = tangent + rows.xhat * rows.spread(weight_tangent)
    if bias_tangent is not None:
        tangent = tangent + rows.spread(bias_tangent)
    tangent = rows.factors.after(tangent)
    return (tangent if after is None else tangent + after).astype(rows.dtype)


def backward(rows: Rows, dy: Array, parameter_type: Any) -> list[Array | None]:
    """Return dx, dweight, dbias and dgate, None without a gate."""
    dy = dy.astype(rows.xhat.dtype)
    dn = rows.factors.after(dy)
    summed = rows.definition.summed(dy.ndim)
    du = rows.jacobian(rows.times_weight(dn))
    dweight, dbias = (
        rows.definition.compact(terms.sum(summed, keepdims=True)).astype(parameter_type)
        for terms in (dn * rows.xhat, dn)
    )
    dgate = None
    if rows.definition.has_gate:
        dgate = ((dy if rows.factors.norm_first else du) * rows.by_gate()).astype(rows.dtype)
    return [rows.factors.before(du).astype(rows.dtype), dweight, dbias, dgate]
