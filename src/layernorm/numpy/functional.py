"""Layer norm and RMS norm of NumPy arrays, forward and backward."""

from typing import SupportsFloat

import numpy.typing as npt

from layernorm import spec
from layernorm._native import try_backward, try_forward, try_forward_with_statistics
from layernorm.numpy.arrays import Array
from layernorm.numpy.backward import backward
from layernorm.numpy.forward import forward
from layernorm.numpy.statistics import Stats


def layer_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    out: Array | None = None,
    zero_centered_weight: bool = False,
) -> Array:
    """Normalize `x` over `axis` to zero mean and unit variance, then scale and shift.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with the biased variance.

    Args:
        x: array, float16, bfloat16 (of ml_dtypes), float32 or float64, of any shape and strides.
        weight, bias: arrays with the normalized shape (x's sizes along `axis`, in x's order), or
            None. Of x's type, or both float32 for 16-bit x.
        axis: int or ints; need not be the last, nor neighbours.
        eps: added to the variance, in units of x squared.
        out: array of x's shape and type to write y to; may be `x` itself.
        zero_centered_weight: the weight stands for 1 + weight; no effect without one.
    Returns: y, with x's shape and type: `out` if given, else a new C-contiguous array.
    Raises: ValueError for shapes, axes, eps, and an `out` that is read-only or overlaps an input
        in part; TypeError for types. Nothing has been written then.
    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    y = try_forward(x, weight, bias, axis, eps, out, True, zero_centered_weight)
    if y is not None:
        return y
    return forward(
        x,
        weight,
        bias,
        axis=axis,
        eps=eps,
        out=out,
        centered=True,
        zero_centered_weight=zero_centered_weight,
        with_stats=False,
    )[0]


def rms_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    out: Array | None = None,
    zero_centered_weight: bool = False,
) -> Array:
    """Divide `x` by its root mean square over `axis`, then scale.

    y = x / sqrt(mean(x**2) + eps) * weight

    Args:
        x, weight, axis, out, zero_centered_weight: as in `layer_norm`.
        eps: added to the mean square, in units of x squared.
    Returns: y, with x's shape and type: `out` if given, else a new C-contiguous array.
    Raises: as `layer_norm` does.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    y = try_forward(x, weight, None, axis, eps, out, False, zero_centered_weight)
    if y is not None:
        return y
    return forward(
        x,
        weight,
        None,
        axis=axis,
        eps=eps,
        out=out,
        centered=False,
        zero_centered_weight=zero_centered_weight,
        with_stats=False,
    )[0]


def layer_norm_forward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    out: Array | None = None,
    zero_centered_weight: bool = False,
) -> tuple[Array, Stats]:
    """Do what `layer_norm` does, and keep the statistics that the backward takes.

    Args: as in `layer_norm`. With `out=x` the backward cannot be had: it needs x.
    Returns: (y, stats): y has the bits that `layer_norm` returns, and stats are those of x's rows.
    Raises: as `layer_norm` does.
    """
    plain = try_forward_with_statistics(x, weight, bias, axis, eps, out, True, zero_centered_weight)
    if plain is not None:
        y, fields = plain
        return y, Stats(*fields)
    y, stats = forward(
        x,
        weight,
        bias,
        axis=axis,
        eps=eps,
        out=out,
        centered=True,
        zero_centered_weight=zero_centered_weight,
        with_stats=True,
    )
    assert stats is not None
    return y, stats


def rms_norm_forward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    out: Array | None = None,
    zero_centered_weight: bool = False,
) -> tuple[Array, Stats]:
    """Do what `rms_norm` does, and keep the statistics that the backward takes.

    Args: as in `rms_norm`. With `out=x` the backward cannot be had: it needs x.
    Returns: (y, stats): y has the bits that `rms_norm` returns; stats.mean is None.
    Raises: as `rms_norm` does.
    """
    plain = try_forward_with_statistics(
        x, weight, None, axis, eps, out, False, zero_centered_weight
    )
    if plain is not None:
        y, fields = plain
        return y, Stats(*fields)
    y, stats = forward(
        x,
        weight,
        None,
        axis=axis,
        eps=eps,
        out=out,
        centered=False,
        zero_centered_weight=zero_centered_weight,
        with_stats=True,
    )
    assert stats is not None
    return y, stats


def layer_norm_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    stats: Stats,
    weight: npt.ArrayLike | None = None,
    *,
    need_dx: bool = True,
    need_dweight: bool | None = None,
    need_dbias: bool = True,
    zero_centered_weight: bool = False,
) -> tuple[Array | None, Array | None, Array | None]:
    """Carry the gradient of a loss from y back to x, weight and bias.

    With g = dy * weight, and means over the normalized axes:
    dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), where xhat = (x - mean) * rstd;
    dweight = sum over the rows of dy * xhat;  dbias = sum over the rows of dy.

    Args:
        dy: gradient with respect to y, of x's shape and type.
        x, weight, zero_centered_weight: as given to `layer_norm_forward`.
        stats: what it returned.
        need_dx, need_dweight, need_dbias: what to work out. need_dweight None: if there is a
            weight.
    Returns: (dx, dweight, dbias), None for what is not needed: dx has x's shape and type, dweight
        and dbias have the normalized shape and the parameters' type (x's, if there were none).
    Raises: ValueError for shapes, TypeError for types, also where stats do not fit x.
    """
    if type(stats) is Stats:
        plain = try_backward(
            dy,
            x,
            stats.mean,
            stats.rstd,
            stats.residual,
            weight,
            stats.axis,
            stats.eps,
            stats.parameter_type,
            need_dx,
            need_dweight,
            need_dbias,
            True,
            zero_centered_weight,
        )
        if plain is not None:
            return plain
    return backward(
        dy,
        x,
        stats,
        weight,
        need_dx=need_dx,
        need_dweight=need_dweight,
        need_dbias=need_dbias,
        centered=True,
        zero_centered_weight=zero_centered_weight,
    )


def rms_norm_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    stats: Stats,
    weight: npt.ArrayLike | None = None,
    *,
    need_dx: bool = True,
    need_dweight: bool | None = None,
    zero_centered_weight: bool = False,
) -> tuple[Array | None, Array | None]:
    """Carry the gradient of a loss from y back to x and weight.

    With g = dy * weight, xhat = x * rstd, and means over the normalized axes:
    dx = rstd * (g - xhat * mean(g * xhat));  dweight = sum over the rows of dy * xhat.

    Args:
        dy: gradient with respect to y, of x's shape and type.
        x, weight, zero_centered_weight: as given to `rms_norm_forward`.
        stats: what it returned.
        need_dx, need_dweight: what to work out. need_dweight None: if there is a weight.
    Returns: (dx, dweight), None for what is not needed; shapes and types as in
        `layer_norm_backward`.
    Raises: ValueError for shapes, TypeError for types, also where stats do not fit x.
    """
    if type(stats) is Stats and stats.mean is None:
        plain = try_backward(
            dy,
            x,
            None,
            stats.rstd,
            None,
            weight,
            stats.axis,
            stats.eps,
            stats.parameter_type,
            need_dx,
            need_dweight,
            False,
            False,
            zero_centered_weight,
        )
        if plain is not None:
            return plain[0], plain[1]
    dx, dweight, _ = backward(
        dy,
        x,
        stats,
        weight,
        need_dx=need_dx,
        need_dweight=need_dweight,
        need_dbias=False,
        centered=False,
        zero_centered_weight=zero_centered_weight,
    )
    return dx, dweight
