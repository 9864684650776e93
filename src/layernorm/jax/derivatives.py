"""Tangents and gradients in differentiable operations of jax.numpy.

The kernels compute the first gradient (docs/derivation.md). Here J is the derivative of xhat with
respect to x, a symmetric operator on each row:

    J v = rstd * (v - mean(v) - xhat * mean(v * xhat))        RMS norm: without mean(v)

All operations are differentiable, so derivatives of any order follow.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from layernorm.jax.definition import Definition, compute_type


class Rows(NamedTuple):
    """x normalized: xhat, rstd and the weight, each of a shape that broadcasts against x."""

    xhat: Array
    rstd: Array
    weight: Array | None  # None for ones
    definition: Definition
    dtype: Any  # x's type

    def spread(self, parameter: Array) -> Array:
        """Widen a parameter (or its tangent), and reshape it to broadcast against x."""
        widened = parameter.astype(self.xhat.dtype)
        return self.definition.spread(widened, self.xhat.ndim)

    def mean(self, v: Array) -> Array:
        """Return the mean of each row."""
        return v.mean(self.definition.axes, keepdims=True)

    def jacobian(self, v: Array) -> Array:
        """Return J v."""
        rest = v - self.mean(v) if self.definition.centered else v
        return self.rstd * (rest - self.xhat * self.mean(v * self.xhat))

    def times_weight(self, v: Array) -> Array:
        """Return v * weight."""
        return v if self.weight is None else v * self.weight


def rows_of(x: Array, weight: Array | None, definition: Definition) -> Rows:
    """Normalize x by the definition, differentiably."""
    axes = definition.axes
    d = x.astype(compute_type(x.dtype))
    if definition.centered:
        # Twice: far from 0 the mean is rounded, and the second mean is that rounding error.
        d = d - jax.lax.stop_gradient(d.mean(axes, keepdims=True))
        d = d - d.mean(axes, keepdims=True)
    rstd = jax.lax.rsqrt((d * d).mean(axes, keepdims=True) + definition.eps)
    return _rows(d * rstd, rstd, x, weight, definition)


def rows_from(
    x: Array, statistics: Sequence[Array], weight: Array | None, definition: Definition
) -> Rows:
    """Normalize x by the statistics that the forward has saved."""
    d = x.astype(compute_type(x.dtype))
    spread = [definition.spread_rows(each) for each in statistics]
    if definition.centered:
        mean, rstd, residual = spread
        d = (d - mean) - residual
    else:
        (rstd,) = spread
    return _rows(d * rstd, rstd, x, weight, definition)


def _rows(xhat: Array, rstd: Array, x: Array, weight: Array | None, definition: Definition) -> Rows:
    if weight is not None:
        weight = definition.spread(weight.astype(xhat.dtype), x.ndim)
        weight = 1 + weight if definition.zero_centered_weight else weight
    return Rows(xhat, rstd, weight, definition, x.dtype)


def forward_tangent(
    rows: Rows,
    x_tangent: Array | None,
    weight_tangent: Array | None,
    bias_tangent: Array | None,
) -> Array:
    """Return the tangent of y."""
    tangent = jnp.zeros_like(rows.xhat)
    if x_tangent is not None:
        tangent = rows.times_weight(rows.jacobian(x_tangent.astype(rows.xhat.dtype)))
    if weight_tangent is not None:
        tangent = tangent + rows.xhat * rows.spread(weight_tangent)
    if bias_tangent is not None:
        tangent = tangent + rows.spread(bias_tangent)
    return tangent.astype(rows.dtype)


def backward(rows: Rows, dy: Array, parameter_type: Any) -> tuple[Array, Array, Array]:
    """Return dx, dweight and dbias."""
    widened = dy.astype(rows.xhat.dtype)
    summed = rows.definition.summed(dy.ndim)
    dx = rows.jacobian(rows.times_weight(widened))
    dweight, dbias = (
        rows.definition.compact(terms.sum(summed, keepdims=True)).astype(parameter_type)
        for terms in (widened * rows.xhat, widened)
    )
    return dx.astype(rows.dtype), dweight, dbias
