"""What the forward keeps for the backward."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from layernorm.numpy.arrays import Array


@dataclass(slots=True, eq=False)
class Stats:
    """The statistics of each row, as `layer_norm_forward` and `rms_norm_forward` return them.

    The arrays have x's shape with the normalized axes kept as size 1, in float32 (float64 for
    float64 x), so that (x - mean) * rstd broadcasts.

    Attributes:
        mean: sum(x) / n, rounded; None for RMS norm, whose mean is zero.
        rstd: 1 / sqrt(var + eps).
        residual: what the rounding took from the mean, which is mean + residual to about twice
            the digits: for a row far from zero, mean alone is not enough for the backward. None
            for RMS norm; with None for layer norm the backward works it out again.
        axis: the normalized axes, sorted, none negative.
        eps: as given to the forward.
        parameter_type: the type of weight and bias, None where there was neither.
    """

    mean: Array | None
    rstd: Array
    residual: Array | None
    axis: tuple[int, ...]
    eps: float
    parameter_type: np.dtype[Any] | None = None
