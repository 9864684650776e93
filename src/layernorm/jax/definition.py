"""What a call computes, apart from its arrays, and the shapes of its arrays."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from layernorm import spec

# Varying axes, and other kept ones, may alternate: the kernels read up to this many runs of each.
_MOST_RUNS = 4


class Gating(NamedTuple):
    """How a gate is applied: y = norm(x) * act(gate) if `norm_first`, else norm(x * act(gate))."""

    activation: str  # "silu" or "sigmoid"
    norm_first: bool


class Quantizing(NamedTuple):
    """How y is rounded to 8 bits: by a scale that is given, or by one for each row, a result."""

    dtype: str  # among spec.QUANTIZED_TYPES
    scale_is_given: bool


class Definition(NamedTuple):
    """The static part of a call.

    Weight, bias and their gradients have the varying axes of x, then the normalized ones.

    Attributes:
        axes: the normalized axes of x, sorted, none negative.
        eps: added to the variance.
        centered: False for RMS norm.
        zero_centered_weight: multiply by 1 + weight.
        varying: the kept axes of x along which weight and bias vary, sorted.
        gating: how the gate is applied, if there is one: an operand of x's shape.
        quantizing: how y is rounded to 8 bits, if it is; then nothing else stands beside x.
        across: the axes of a mesh whose devices each have a part of every row.
    """

    axes: tuple[int, ...]
    eps: float
    centered: bool = True
    zero_centered_weight: bool = False
    varying: tuple[int, ...] = ()
    gating: Gating | None = None
    quantizing: Quantizing | None = None
    across: tuple[str, ...] = ()

    @property
    def has_gate(self) -> bool:
        """Tell whether the call has a gate."""
        return self.gating is not None

    @property
    def has_scale(self) -> bool:
        """Tell whether the call has a scale as its last operand."""
        return self.quantizing is not None and self.quantizing.scale_is_given

    @property
    def statistics(self) -> int:
        """Count the statistics: mean, rstd and residual; for RMS norm rstd alone."""
        return 3 if self.centered else 1

    @property
    def of_parameters(self) -> tuple[int, ...]:
        """Return the axes of x that weight and bias have, in their order."""
        return self.varying + self.axes

    def kept(self, dims: int) -> tuple[int, ...]:
        """Return the axes that are not normalized: those of the statistics."""
        return tuple(axis for axis in range(dims) if axis not in self.axes)

    def summed(self, dims: int) -> tuple[int, ...]:
        """Return the axes that dweight and dbias are sums over: those that parameters lack."""
        return tuple(axis for axis in range(dims) if axis not in self.of_parameters)

    def forward_axes(
        self, dims: int, *, has_addend: bool = False, with_statistics: bool
    ) -> list[tuple[int, ...]]:
        """Return the axes of x that y, total and each of the statistics, or the scales, have."""
        of_rows = self.statistics if with_statistics else 0
        if self.quantizing is not None:
            of_rows = not self.has_scale
        return [*[tuple(range(dims))] * (1 + has_addend), *[self.kept(dims)] * of_rows]

    def backward_axes(self, dims: int, need: Sequence[bool]) -> list[tuple[int, ...]]:
        """Return the axes of x that dx, dweight, dbias and dgate have, for those needed."""
        every = (tuple(range(dims)), *[self.of_parameters] * 2, tuple(range(dims)))
        return [axes for axes, needed in zip(every, need, strict=True) if needed]

    def spread(self, parameter: Array, dims: int) -> Array:
        """Give a parameter all axes of x, so that it broadcasts against x."""
        own = self.of_parameters
        ordered = parameter.transpose(sorted(range(len(own)), key=own.__getitem__))
        return jnp.expand_dims(ordered, self.summed(dims))

    def compact(self, parameter: Array) -> Array:
        """Undo `spread`."""
        own = self.of_parameters
        ordered = parameter.squeeze(self.summed(parameter.ndim))
        return ordered.transpose([sorted(own).index(axis) for axis in own])

    def spread_rows(self, rows: Array) -> Array:
        """Reshape statistics so that they broadcast against x."""
        return jnp.expand_dims(rows, self.axes)

    def cols(self, shape: Sequence[int]) -> int:
        """Count the elements of a row."""
        return math.prod(shape[axis] for axis in self.axes)

    def moved(self, order: Sequence[int]) -> "Definition":
        """Return the definition for x with its axes in this order."""
        axes, varying = (tuple(sorted(map(order.index, own))) for own in (self.axes, self.varying))
        return self._replace(axes=axes, varying=varying)

    def with_axis(self, index: int, *, varies: bool) -> "Definition":
        """Return the definition for x with one more kept axis, at this index."""
        axes, varying = (
            tuple(axis + (axis >= index) for axis in own) for own in (self.axes, self.varying)
        )
        own = (index,) if varies else ()
        return self._replace(axes=axes, varying=tuple(sorted(varying + own)))

    def is_read_in_place(self, shape: Any) -> bool:
        """Tell whether the kernels take a contiguous x of this shape as it is.

        Of the axes larger than 1, the normalized ones are neighbors, and the varying ones precede
        them.
        """
        large = [axis for axis, size in enumerate(shape) if size != 1]
        first = min((axis for axis in large if axis in self.axes), default=self.axes[0])
        kinds = [axis in self.varying for axis in large if axis < first]
        return (
            spec.layout_of(shape, self.axes) is not None
            and all(axis < first for axis in self.varying if axis in large)
            and max(_runs(kinds, True), _runs(kinds, False)) <= _MOST_RUNS
        )


def _runs(kinds: Sequence[bool], kind: bool) -> int:
    """Count the groups of neighbors of this kind."""
    return sum(each is kind for each, _ in itertools.groupby(kinds))


def compute_type(x_type: Any) -> Any:
    """Return the type of the statistics of x: float64 for float64, float32 for the others."""
    return jnp.dtype(spec.compute_type(jnp.dtype(x_type).name))
