"""The functions of `layernorm.numpy` on top of a front end for other arrays, for the checkers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from layouts import Array, Axis, axes_of


@dataclass
class Stats:
    """What a forward saves for its backward; None for what the front end does not return."""

    call: dict[str, Any]
    bias: Array | None
    mean: Array | None = None
    rstd: Array | None = None
    residual: Array | None = None


class Adapter:
    """The functions of `layernorm.numpy`, in terms of two methods of a subclass.

    `_forward(x, weight, bias, centered=..., **options)` returns y and `Stats`;
    `_backward(dy, x, stats, weight)` returns dx, dweight and, for layer norm, dbias.
    """

    def layer_norm_forward(self, x: Array, weight=None, bias=None, **options: Any):
        return self._forward(x, weight, bias, centered=True, **options)

    def rms_norm_forward(self, x: Array, weight=None, **options: Any):
        return self._forward(x, weight, None, centered=False, **options)

    def layer_norm_backward(self, dy: Array, x: Array, stats: Stats, weight=None, **_: Any):
        return self._backward(dy, x, stats, weight)

    def rms_norm_backward(self, dy: Array, x: Array, stats: Stats, weight=None, **_: Any):
        return self._backward(dy, x, stats, weight)[:2]


def parameters(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    *,
    axis: Axis,
    zero_centered_weight: bool,
    **_: Any,
) -> tuple[Array, Array]:
    """Return weight and bias, with ones and zeros for those that are None.

    NumPy's backward returns dweight and dbias without parameters too. Ones and zeros change no bit
    of dx.
    """
    given = bias if weight is None else weight
    dtype = x.dtype.newbyteorder("=") if given is None else given.dtype
    shape = [x.shape[each] for each in axes_of(axis, x.ndim)] if given is None else given.shape
    if weight is None:
        weight = np.full(shape, 0.0 if zero_centered_weight else 1.0).astype(dtype)
    if bias is None:
        bias = np.zeros(shape).astype(dtype)
    return weight, bias
