"""The statistics that a forward returns for its backward."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from layernorm import spec
from layernorm.numpy.arrays import Array

# The shapes of weight and bias, None for one that is absent.
ParameterShapes = tuple[spec.Shape | None, spec.Shape | None]


class Gating(NamedTuple):
    """How a gate was applied, for the backward: see `layer_norm`."""

    activation: str
    norm_before_gate: bool
    bias: Array | None  # as given to the forward


# The arguments of Stats, in order; the last two may be left out.
StatsFields = tuple[Any, ...]


@dataclass(slots=True, eq=False)
class Stats:
    """The statistics of each row, as `layer_norm_forward` and `rms_norm_forward` return them.

    The arrays have x's shape with the normalized axes kept as size 1, in float32 (float64 for
    float64 x), so that (x - mean) * rstd broadcasts.

    Attributes:
        mean: sum(x) / n, rounded; None for RMS norm, whose mean is zero.
        rstd: 1 / sqrt(var + eps).
        residual: the rounding error of mean: mean + residual has about twice its digits, which the
            backward needs for rows far from zero. None for RMS norm; None for layer norm makes the
            backward recompute it.
        axis: the normalized axes, sorted and not negative.
        eps: as given to the forward.
        parameter_type: the type of weight and bias; None if there was neither.
        parameter_shapes: the shapes of weight and bias, if one of them has kept axes too.
        gating: how the gate was applied, if there was one.
    """

    mean: Array | None
    rstd: Array
    residual: Array | None
    axis: tuple[int, ...]
    eps: float
    parameter_type: np.dtype[Any] | None = None
    parameter_shapes: ParameterShapes | None = None
    gating: Gating | None = None
