"""What a front end for other arrays needs to be taken by the contract's checks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from layouts import Array, Axis, axes_of


@dataclass
class Stats:
    """What a forward leaves to its backward; None where the front end's users do not see it."""

    call: dict[str, Any]
    bias: Array | None
    mean: Array | None = None
    rstd: Array | None = None
    residual: Array | None = None


class Adapter:
    """The functions of `layernorm.numpy`, made of two methods that the front end's adapter has.

    `_forward(x, weight, bias, centered=..., **options)` returns y and `Stats`;
    `_backward(dy, x, stats, weight)` dx, dweight and (layer norm) dbias.
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
    """Return weight and bias, ones and zeros where there are none.

    NumPy's backward gives dweight and dbias without parameters too; these change no bit of dx.
    """
    given = bias if weight is None else weight
    dtype = x.dtype.newbyteorder("=") if given is None else given.dtype
    shape = [x.shape[each] for each in axes_of(axis, x.ndim)]
    if weight is None:
        weight = np.full(shape, 0.0 if zero_centered_weight else 1.0).astype(dtype)
    if bias is None:
        bias = np.zeros(shape).astype(dtype)
    return weight, bias
