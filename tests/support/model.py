"""Layer norm in plain NumPy with the front end's signatures: right by the contract, and slow.

It shows that the checkers let a right implementation pass whose sums differ from ours. Each class
of faults.py breaks one of its steps, which the checkers must see.
"""

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from layouts import Array, axes_of, from_rows, rows_of

from layernorm import reference


def native(dtype: np.dtype) -> np.dtype:
    return dtype.newbyteorder("=")


def wide(dtype: np.dtype) -> np.dtype:
    """Return a wider type, in which squares do not overflow and sums lose nothing."""
    return np.dtype(np.longdouble if native(dtype) == np.float64 else np.float64)


class Model:
    """Each step is a method that a fault can replace."""

    def layer_norm(self, *args: Any, **options: Any) -> Array:
        return self.layer_norm_forward(*args, **options)[0]

    def rms_norm(self, *args: Any, **options: Any) -> Array:
        return self.rms_norm_forward(*args, **options)[0]

    def layer_norm_forward(self, x, weight=None, bias=None, *, eps=1e-5, gate=None, **options):
        forward = self.forward if gate is None else partial(self.gated_forward, gate)
        return forward(np.asarray(x), weight, bias, eps=eps, centered=True, **options)

    def rms_norm_forward(self, x, weight=None, *, eps=1e-6, gate=None, **options):
        forward = self.forward if gate is None else partial(self.gated_forward, gate)
        return forward(np.asarray(x), weight, None, eps=eps, centered=False, **options)

    def layer_norm_backward(self, dy, x, stats, weight=None, *, gate=None, **options):
        backward = self.backward if gate is None else partial(self.gated_backward, gate)
        return backward(dy, x, stats, weight, centered=True, **options)

    def rms_norm_backward(self, dy, x, stats, weight=None, *, gate=None, **options):
        backward = self.backward if gate is None else partial(self.gated_backward, gate)
        results = backward(dy, x, stats, weight, centered=False, need_dbias=False, **options)
        return *results[:2], *results[3:]

    def gated_forward(self, gate, x, weight, bias, *, activation, norm_before_gate, **options):
        """Return y and the statistics of x of at most float32."""
        u = self.input_of_norm(x, gate, activation, norm_before_gate)
        n, stats = self.forward(u, weight, bias, **options)
        stats.gating = activation, norm_before_gate, bias
        if weight is None and bias is None:
            stats.parameter_dtype = native(x.dtype)
        with np.errstate(all="ignore"):
            y = self.gated(n, x.dtype, gate, activation) if norm_before_gate else n
        return y.astype(native(x.dtype)), stats

    def gated_backward(self, gate, dy, x, stats, weight, **options):
        activation, norm_before_gate, bias = stats.gating
        act, slope = self.activated(gate, activation)
        u = self.input_of_norm(x, gate, activation, norm_before_gate)
        wide_x, wide_dy = (each.astype(np.float64) for each in (x, dy))
        with np.errstate(all="ignore"):
            dn = wide_dy * act if norm_before_gate else wide_dy
            du, *of_parameters = self.backward(dn, u, stats, weight, **options)
            of_norm = {"axis": stats.axis, "eps": stats.eps, "centered": options["centered"]}
            of_norm["zero_centered_weight"] = options["zero_centered_weight"]
            n, _ = self.forward(u, weight, self.bias_of_dgate(bias), **of_norm)
            dx = du if norm_before_gate else du * act
            dgate = (wide_dy * n if norm_before_gate else du * wide_x) * slope
        dx, dgate = (each.astype(native(x.dtype)) for each in (dx, dgate))
        return dx, *of_parameters, dgate

    def activated(self, gate, activation):
        """Return act(gate) and its derivative."""
        return reference.activate(gate, activation)[:2]

    def input_of_norm(self, x, gate, activation, norm_before_gate):
        with np.errstate(all="ignore"):
            wide_x = x.astype(np.float64)
            return wide_x if norm_before_gate else wide_x * self.activated(gate, activation)[0]

    def gated(self, n, dtype, gate, activation):
        return n * self.activated(gate, activation)[0]

    def bias_of_dgate(self, bias):
        return bias

    def forward(
        self,
        x,
        weight,
        bias,
        *,
        residual=None,
        axis=-1,
        eps,
        out=None,
        zero_centered_weight=False,
        centered,
    ):
        axis, addend = self.axes(axis, x.ndim), residual
        given = [parameter.dtype for parameter in (weight, bias) if parameter is not None]
        with np.errstate(all="ignore"):
            total = None if addend is None else (x + addend).astype(native(x.dtype), copy=False)
            rows = self.rows(x if addend is None else total, axis)
            if addend is not None:
                rows = self.rows_of_total(rows, self.rows(x, axis) + self.rows(addend, axis))
            mean = self.mean(rows) if centered else np.zeros_like(rows[:, :1])
            residual = self.residual(rows, mean) if centered else mean
            deviation = self.deviation(rows, mean, residual)
            variance = self.variance(rows, deviation)
            rstd = self.not_finite_is_nan(rows, self.rstd(variance, eps))
            xhat = self.xhat(deviation, rstd)
            weight_rows, bias_rows = (self.of_rows(each, x, axis) for each in (weight, bias))
            y = self.affine(xhat, self.factor(weight_rows, zero_centered_weight), bias_rows)
            y = self.rounded(y, x, axis)
            stats = SimpleNamespace(
                mean=self.saved(mean, x, axis) if centered else None,
                residual=self.saved(residual, x, axis) if centered else None,
                rstd=self.saved(rstd, x, axis),
                axis=axis,
                eps=eps,
                parameter_dtype=(given or [native(x.dtype)])[0],
                parameter_shape=(bias if weight is None else weight).shape
                if given
                else tuple(x.shape[a] for a in axis),
            )
        y = self.deliver(y, out)
        return (y, stats) if addend is None else (y, total, stats)

    def backward(
        self,
        dy,
        x,
        stats,
        weight,
        *,
        dtotal=None,
        need_dx=True,
        need_dweight=None,
        need_dbias=True,
        zero_centered_weight=False,
        centered,
    ):
        axis = stats.axis
        need_dweight = weight is not None if need_dweight is None else need_dweight
        dtype = stats.parameter_dtype
        with np.errstate(all="ignore"):
            rows, dy = self.rows(x, axis), self.rows(dy, axis)
            mean = stats.mean.reshape(-1, 1).astype(rows.dtype) if centered else 0.0
            residual = self.residual_in_backward(rows, mean, stats) if centered else 0.0
            deviation = self.deviation(rows, mean, residual)
            rstd = self.rstd_again(rows, deviation, stats)
            xhat = self.xhat(deviation, rstd)
            dx = dweight = dbias = None
            if need_dx:
                g = dy * self.factor(self.of_rows(weight, x, axis), zero_centered_weight)
                g = np.where(np.isfinite(g).all(axis=1, keepdims=True), g, np.nan)
                dx = self.dx(g, xhat, rstd, centered)
                if dtotal is not None:
                    dx = self.with_dtotal(dx, self.rows(dtotal, axis), x.dtype)
                dx = self.rounded(dx, x, axis)
            if need_dweight:
                dweight = self.summed_of_members(dy * xhat, x, axis, stats, dtype)
            if need_dbias:
                dbias = self.summed_of_members(dy, x, axis, stats, dtype)
        return dx, dweight, dbias

    def axes(self, axis, ndim):
        return axes_of(axis, ndim)

    def rows(self, x, axis):
        return rows_of(x, axis).astype(wide(x.dtype), order="C")

    def rows_of_total(self, stored, exact):
        """Return the rows to normalize, of the stored total and of the unrounded sum."""
        return stored

    def with_dtotal(self, dx, dtotal, dtype):
        """Return the gradient of x and the residual, not yet rounded."""
        return dx + dtotal

    def mean(self, rows):
        """Return the mean, rounded to the type in which it is saved."""
        if rows.shape[1] == 0:
            return np.full_like(rows, np.nan, shape=(len(rows), 1))
        saved = np.float64 if rows.dtype == np.longdouble else np.float32
        equal = (rows == rows[:, :1]).all(axis=1, keepdims=True)
        mean = np.where(equal, rows[:, :1], rows.mean(axis=1, keepdims=True))
        return mean.astype(saved).astype(rows.dtype)

    def residual(self, rows, mean):
        """Return what rounding the mean has lost."""
        return (rows - mean).sum(axis=1, keepdims=True) / max(rows.shape[1], 1)

    def residual_in_backward(self, rows, mean, stats):
        # Not the saved one: for a subnormal x it is too small to be saved.
        return self.residual(rows, mean)

    def rstd_again(self, rows, deviation, stats):
        """Return the saved rstd, or compute it again where the saved one is not a normal number."""
        rstd = stats.rstd.reshape(-1, 1).astype(rows.dtype)
        limits = np.finfo(stats.rstd.dtype)
        normal = (rstd >= limits.smallest_normal) & (rstd <= limits.max)
        anew = self.rstd(self.variance(rows, deviation), stats.eps)
        return np.where(normal | np.isnan(rstd), rstd, anew)

    def deviation(self, rows, mean, residual):
        return (rows - mean) - residual

    def variance(self, rows, deviation):
        return np.square(deviation).sum(axis=1, keepdims=True) / max(rows.shape[1], 1)

    def rstd(self, variance, eps):
        return 1 / np.sqrt(variance + eps)

    def not_finite_is_nan(self, rows, rstd):
        return np.where(np.isfinite(rows).all(axis=1, keepdims=True), rstd, np.nan)

    def xhat(self, deviation, rstd):
        return np.where((deviation == 0) & ~np.isnan(rstd), 0, deviation * rstd)

    def factor(self, weight, zero_centered):
        if weight is None:
            return 1.0
        factor = weight.astype(wide(weight.dtype))
        return 1 + factor if zero_centered else factor

    def affine(self, xhat, factor, bias):
        y = xhat * factor
        return y if bias is None else y + bias.astype(wide(bias.dtype))

    def rounded(self, values, x, axis):
        return from_rows(values.astype(native(x.dtype)), x.shape, axis)

    def deliver(self, y, out):
        if out is None:
            return y
        out[...] = y
        return out

    def saved(self, statistic, x, axis):
        dtype = np.float64 if native(x.dtype) == np.float64 else np.float32
        shape = [1 if a in axis else size for a, size in enumerate(x.shape)]
        return statistic.astype(dtype).reshape(shape)

    def dx(self, g, xhat, rstd, centered):
        return rstd * (g - self.mean_of_g(g, centered) - xhat * self.projection(g, xhat))

    def mean_of_g(self, g, centered):
        return g.mean(axis=1, keepdims=True) if centered and g.shape[1] else 0.0

    def projection(self, g, xhat):
        return (g * xhat).mean(axis=1, keepdims=True) if g.shape[1] else 0.0

    def of_rows(self, parameter, x, axis):
        """Return a parameter for each row, or one for all."""
        if parameter is None or parameter.ndim == len(axis):
            return None if parameter is None else parameter.reshape(1, -1)
        return rows_of(np.broadcast_to(parameter, x.shape), axis)

    def summed_of_members(self, terms, x, axis, stats, dtype):
        """Sum over the rows that share a parameter."""
        shape = stats.parameter_shape
        if len(shape) == len(axis):
            return self.summed(terms, dtype).reshape(shape)
        shared = [a for a in range(x.ndim) if shape[a] != x.shape[a]]
        terms = np.moveaxis(from_rows(terms, x.shape, axis), shared, range(len(shared)))
        return self.summed(terms.reshape(-1, math.prod(shape)), dtype).reshape(shape)

    def summed(self, terms, dtype):
        return terms.sum(axis=0).astype(dtype)
