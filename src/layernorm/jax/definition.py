"""What a call computes, apart from its arrays, and the shapes of its arrays."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from layernorm import spec


class Definition(NamedTuple):
    """The static part of a call.

    Attributes:
        axes: the normalized axes of x, sorted, none negative, so that x collapses to (outer, cols,
            inner) as in `spec.layout_of`.
        eps: added to the variance.
        centered: False for RMS norm.
        zero_centered_weight: multiply by 1 + weight.
        batch_axes: how many of x's first axes are a batch of calls. Weight and bias may have them
            too, before the normalized axes; their gradients always have them.
    """

    axes: tuple[int, ...]
    eps: float
    centered: bool = True
    zero_centered_weight: bool = False
    batch_axes: int = 0

    @property
    def statistics(self) -> int:
        """Count the statistics: mean, rstd and residual; for RMS norm rstd alone."""
        return 3 if self.centered else 1

    def kept(self, dims: int) -> tuple[int, ...]:
        """Return the axes that are not normalized: those of the statistics."""
        return tuple(axis for axis in range(dims) if axis not in self.axes)

    def summed(self, dims: int) -> tuple[int, ...]:
        """Return the axes that dweight and dbias are sums over."""
        return self.kept(dims)[self.batch_axes :]

    def axes_of(self, parameter: Array) -> tuple[int, ...]:
        """Return the axes of x that this weight or bias has."""
        return (*range(parameter.ndim - len(self.axes)), *self.axes)

    def forward_axes(self, dims: int, *, with_statistics: bool) -> list[tuple[int, ...]]:
        """Return the axes of x that y has, and those that each of the statistics has."""
        statistics = self.statistics if with_statistics else 0
        return [tuple(range(dims)), *[self.kept(dims)] * statistics]

    def backward_axes(self, dims: int, need: Sequence[bool]) -> list[tuple[int, ...]]:
        """Return the axes of x that dx, dweight and dbias have, for those that are needed."""
        parameter = (*range(self.batch_axes), *self.axes)
        every = (tuple(range(dims)), parameter, parameter)
        return [axes for axes, needed in zip(every, need, strict=True) if needed]

    def spread(self, parameter: Array, shape: Sequence[int]) -> Array:
        """Reshape a parameter so that it broadcasts against x."""
        own = self.axes_of(parameter)
        sizes = [shape[axis] if axis in own else 1 for axis in range(len(shape))]
        return parameter.reshape(sizes)

    def spread_rows(self, rows: Array) -> Array:
        """Reshape statistics so that they broadcast against x."""
        return jnp.expand_dims(rows, self.axes)

    def section(self, shape: Sequence[int]) -> tuple[int, int]:
        """Find the range of x's axes that holds the normalized ones, and others of size 1 only."""
        large = [axis for axis in self.axes if shape[axis] != 1] or [self.axes[0]]
        return large[0], large[-1] + 1

    def cols(self, shape: Sequence[int]) -> int:
        """Count the elements of a row."""
        return math.prod(shape[axis] for axis in self.axes)

    def with_row_axis(self) -> "Definition":
        """Return the definition for x with one more axis of rows, at `batch_axes`."""
        return self._replace(axes=tuple(axis + 1 for axis in self.axes))

    def with_batch_axis(self) -> "Definition":
        """Return the definition for x with one more batch axis, in front."""
        return self.with_row_axis()._replace(batch_axes=self.batch_axes + 1)


def compute_type(x_type: Any) -> Any:
    """Return the type of the statistics of x: float64 for float64, float32 for the others."""
    return jnp.dtype(spec.compute_type(jnp.dtype(x_type).name))
