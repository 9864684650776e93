"""What a call computes, apart from its arrays; and how its arrays are shaped."""

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
            inner) as `spec.layout_of` says.
        eps: added to the variance.
        centered: False for RMS norm.
        zero_centered_weight: the weight stands for 1 + weight.
        batch_axes: how many of x's first axes are a batch of calls. Weight and bias may have them
            too, in front of the normalized sizes; their gradients always have them.
    """

    axes: tuple[int, ...]
    eps: float
    centered: bool = True
    zero_centered_weight: bool = False
    batch_axes: int = 0

    def kept(self, dims: int) -> tuple[int, ...]:
        """Name the axes that are not normalized: those of the statistics."""
        return tuple(axis for axis in range(dims) if axis not in self.axes)

    def summed(self, dims: int) -> tuple[int, ...]:
        """Name the axes that dweight and dbias are sums over."""
        return self.kept(dims)[self.batch_axes :]

    def kept_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of mean, rstd and residual."""
        return tuple(shape[axis] for axis in self.kept(len(shape)))

    def parameter_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of dweight and dbias."""
        return tuple(shape[axis] for axis in (*range(self.batch_axes), *self.axes))

    def spread(self, parameter: Array, shape: Sequence[int]) -> Array:
        """Shape a parameter so that it broadcasts against x."""
        has_batch = parameter.ndim == self.batch_axes + len(self.axes)
        own = (*(range(self.batch_axes) if has_batch else ()), *self.axes)
        sizes = [shape[axis] if axis in own else 1 for axis in range(len(shape))]
        return parameter.reshape(sizes)

    def spread_rows(self, rows: Array) -> Array:
        """Shape statistics so that they broadcast against x."""
        return jnp.expand_dims(rows, self.axes)

    def section(self, shape: Sequence[int]) -> tuple[int, int]:
        """Find the section of x's axes that holds the normalized ones, and else axes of size 1."""
        large = [axis for axis in self.axes if shape[axis] != 1] or [self.axes[0]]
        return large[0], large[-1] + 1

    def cols(self, shape: Sequence[int]) -> int:
        """Count the elements of a row."""
        return math.prod(shape[axis] for axis in self.axes)

    def with_row_axis(self) -> "Definition":
        """Describe the same with one more axis of rows, at `batch_axes`."""
        return self._replace(axes=tuple(axis + 1 for axis in self.axes))

    def with_batch_axis(self) -> "Definition":
        """Describe the same with one more axis of the batch, in front."""
        return self.with_row_axis()._replace(batch_axes=self.batch_axes + 1)


def compute_type(x_type: Any) -> Any:
    """Find the type of the statistics of x: float64 for float64, float32 for the others."""
    return jnp.dtype(spec.compute_type(jnp.dtype(x_type).name))
