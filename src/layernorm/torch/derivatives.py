"""Derivatives in differentiable tensor operations: forward mode, and gradients of gradients.

The kernels compute first derivatives (docs/derivation.md). Here J is the derivative of xhat with
respect to x, a symmetric operator on each row:

    J v = rstd * (v - mean(v) - xhat * mean(v * xhat))        RMS norm: without mean(v)

All operations are differentiable, so derivatives of any order follow. float32 is computed in
float64 and the 16-bit types in float32, which keeps the digits of rows with large means.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from layernorm.torch.arguments import Axes, Definition, has_kept_axes, spread

_WIDENED = {torch.float32: torch.float64, torch.float64: torch.float64}

Mean = Callable[[Tensor, Axes], Tensor]  # along the axes, which are kept as size 1


def _mean(v: Tensor, axes: Axes) -> Tensor:
    return v.mean(axes, keepdim=True)


class Rows(NamedTuple):
    """x normalized: xhat, rstd and the weight, as differentiable functions of x and weight."""

    xhat: Tensor
    rstd: Tensor
    weight: Tensor | None  # with x's axes, or None for ones
    parameter_shape: tuple[int, ...] | None  # None: the normalized shape
    axes: Axes
    centered: bool
    mean_along: Mean

    def widened(self, v: Tensor) -> Tensor:
        """Return v in the type of xhat."""
        return v.to(self.xhat.dtype)

    def mean(self, v: Tensor) -> Tensor:
        """Return the mean over the normalized axes."""
        return self.mean_along(v, self.axes)

    def jacobian(self, v: Tensor) -> Tensor:
        """Return J v."""
        rest = v - self.mean(v) if self.centered else v
        return self.rstd * (rest - self.xhat * self.mean(v * self.xhat))

    def rstd_tangent(self, x_tangent: Tensor) -> Tensor:
        """Return the tangent of rstd."""
        return -(self.rstd**2) * self.mean(self.xhat * x_tangent)

    def over_rows(self, v: Tensor) -> Tensor:
        """Return the sum over the rows, in the shape of weight and bias."""
        every = range(-v.dim(), 0)
        if self.parameter_shape is not None:
            shared = [each for each in every if self.parameter_shape[each] != v.shape[each]]
            return v.sum(shared, keepdim=True) if shared else v
        kept = [each for each in every if each not in self.axes]
        return v.sum(kept) if kept else v

    def times_weight(self, v: Tensor) -> Tensor:
        """Return v * weight."""
        return v if self.weight is None else v * self.weight

    def spread(self, parameter: Tensor) -> Tensor:
        """Return a parameter widened and reshaped so that it broadcasts over the rows."""
        return spread(self.widened(parameter), self.xhat.dim(), self.axes)


def rows_of(
    x: Tensor,
    weight: Tensor | None,
    definition: Definition,
    bias: Tensor | None = None,
    mean: Mean = _mean,
) -> Rows:
    """Return x normalized, in differentiable operations. `bias` gives the parameters' shape.

    Where rows are split over processes, `mean` is that of all their parts.
    """
    axes, centered = definition.axes, definition.centered
    parameter = bias if weight is None else weight
    has_own_shape = parameter is not None and has_kept_axes(parameter, axes)
    shape = tuple(parameter.shape) if parameter is not None and has_own_shape else None
    widened = x.to(_WIDENED.get(x.dtype, torch.float32))
    d = widened - mean(widened, axes) if centered else widened
    rstd = torch.rsqrt(mean(d * d, axes) + definition.eps)
    if weight is not None:
        weight = spread(weight.to(widened.dtype), x.dim(), axes)
        weight = 1 + weight if definition.zero_centered_weight else weight
    return Rows(d * rstd, rstd, weight, shape, axes, centered, mean)


def forward_tangent(
    rows: Rows,
    x_tangent: Tensor | None,
    weight_tangent: Tensor | None,
    bias_tangent: Tensor | None,
) -> Tensor:
    """Return the tangent of y."""
    tangent = torch.zeros_like(rows.xhat)
    if x_tangent is not None:
        tangent = rows.times_weight(rows.jacobian(rows.widened(x_tangent)))
    if weight_tangent is not None:
        tangent = tangent + rows.xhat * rows.spread(weight_tangent)
    if bias_tangent is not None:
        tangent = tangent + rows.spread(bias_tangent)
    return tangent


def backward_tangents(
    rows: Rows,
    dy: Tensor,
    dy_tangent: Tensor | None,
    x_tangent: Tensor | None,
    weight_tangent: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tangents of dx, dweight and dbias."""
    dy = rows.widened(dy)
    zero = torch.zeros_like(rows.xhat)
    ddy = zero if dy_tangent is None else rows.widened(dy_tangent)
    dxhat = drstd = zero
    if x_tangent is not None:
        x_tangent = rows.widened(x_tangent)
        dxhat, drstd = rows.jacobian(x_tangent), rows.rstd_tangent(x_tangent)
    g, dg = rows.times_weight(dy), rows.times_weight(ddy)
    if weight_tangent is not None:
        dg = dg + dy * rows.spread(weight_tangent)
    inner = rows.mean(g * rows.xhat)
    inner_tangent = rows.mean(dg * rows.xhat + g * dxhat)
    change = -dxhat * inner - rows.xhat * inner_tangent + dg
    if rows.centered:
        change = change - rows.mean(dg)
    dx_tangent = drstd / rows.rstd * rows.jacobian(g) + rows.rstd * change
    return (
        dx_tangent,
        rows.over_rows(ddy * rows.xhat + dy * dxhat),
        rows.over_rows(ddy),
    )


def backward_gradients(
    rows: Rows,
    dy: Tensor,
    u: Tensor | None,
    p: Tensor | None,
    q: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients with respect to dy, x and weight, given u, p, q for dx, dweight, dbias.

    With g = dy * weight: (u, dx) = (J u, g), which gives those of dy and weight; that of x is
    -rstd**2 * xhat * mean(u * (g - mean(g) - xhat * mean(g * xhat))) - rstd * (mean(g * xhat) J u +
    mean(u * xhat) J g), and J (p * dy) from dweight.
    """
    dy = rows.widened(dy)
    of_dy = torch.zeros_like(rows.xhat)
    of_x = torch.zeros_like(rows.xhat)
    of_weight = None
    if u is not None:
        u = rows.widened(u)
        g = rows.times_weight(dy)
        ju, jg = rows.jacobian(u), rows.jacobian(g)
        of_dy = rows.times_weight(ju)
        of_x = -rows.rstd * (
            rows.xhat * rows.mean(u * jg)
            + rows.mean(g * rows.xhat) * ju
            + rows.mean(u * rows.xhat) * jg
        )
        of_weight = rows.over_rows(dy * ju)
    if p is not None:
        p = rows.spread(p)
        of_dy = of_dy + p * rows.xhat
        of_x = of_x + rows.jacobian(p * dy)
    if q is not None:
        of_dy = of_dy + rows.spread(q)
    return of_dy, of_x, of_weight


class Gate(NamedTuple):
    """An activated gate, act(z), and act'(z), as differentiable functions of z."""

    act: Tensor
    slope: Tensor

    @classmethod
    def of(cls, gate: Tensor, definition: Definition) -> "Gate":
        """Activate a gate, in the type of `Rows`."""
        z = gate.to(_WIDENED.get(gate.dtype, torch.float32))
        of_z, of_minus_z = torch.sigmoid(z), torch.sigmoid(-z)
        if not definition.silu:
            return cls(of_z, of_z * of_minus_z)
        # Past these sigmoid is 0 or 1, and an infinity would become NaN.
        above, bounded = z.clamp(min=-1e4), z.clamp(-1e4, 1e4)
        return cls(above * of_z, of_z + bounded * of_z * of_minus_z)


def _gated_rows(
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    mean: Mean = _mean,
) -> tuple[Gate, Rows, Tensor]:
    """Return the gate, the rows that are normalized, and their norm."""
    activated = Gate.of(gate, definition)
    u = x.to(activated.act.dtype)
    if not definition.norm_before_gate:
        u = u * activated.act
    rows = rows_of(u, weight, definition, bias, mean)
    n = rows.times_weight(rows.xhat)
    return activated, rows, n if bias is None else n + rows.spread(bias)


def gated_tangent(
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    tangents: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
) -> Tensor:
    """Return the tangent of y of a gated norm, given those of x, gate, weight and bias."""
    (act, slope), rows, n = _gated_rows(x, gate, weight, bias, definition)
    of_x, of_gate, of_weight, of_bias = tangents
    if definition.norm_before_gate:
        tangent = act * forward_tangent(rows, of_x, of_weight, of_bias)
        return tangent if of_gate is None else tangent + n * slope * rows.widened(of_gate)
    of_u = torch.zeros_like(rows.xhat) if of_x is None else rows.widened(of_x) * act
    if of_gate is not None:
        of_u = of_u + rows.widened(x) * slope * rows.widened(of_gate)
    return forward_tangent(rows, of_u, of_weight, of_bias)


def gradients(
    dy: Tensor,
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    mean: Mean = _mean,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return dx, dweight, dbias and dgate, to be differentiated again.

    dweight and dbias have their parameters' shapes, or the normalized shape.
    """
    if gate is None:
        rows = rows_of(x, weight, definition, bias, mean)
        dy = rows.widened(dy)
        of_weight, of_bias = _of_parameters(dy, rows, weight, bias)
        return rows.jacobian(rows.times_weight(dy)), of_weight, of_bias, None
    (act, slope), rows, n = _gated_rows(x, gate, weight, bias, definition, mean)
    dy = rows.widened(dy)
    dn = dy * act if definition.norm_before_gate else dy
    du = rows.jacobian(rows.times_weight(dn))
    of_parameters = _of_parameters(dn, rows, weight, bias)
    if definition.norm_before_gate:
        return du, *of_parameters, dy * n * slope
    return du * act, *of_parameters, du * rows.widened(x) * slope


def _of_parameters(
    dn: Tensor, rows: Rows, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    def summed(v: Tensor, parameter: Tensor | None) -> Tensor:
        own = has_kept_axes(parameter, rows.axes)
        shape = tuple(parameter.shape) if parameter is not None and own else None
        return rows._replace(parameter_shape=shape).over_rows(v)

    return summed(dn * rows.xhat, weight), summed(dn, bias)
