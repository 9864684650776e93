"""Tensors as the GPU kernels walk them, (outer, cols, inner), with as few copies as can be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from torch import Tensor

from layernorm import spec
from layernorm.torch.arguments import Axes


@dataclass(frozen=True)
class Order:
    """An order of the axes in which x can be walked, and the shape it then has."""

    axes: tuple[int, ...]  # of x, in that order
    normalized: tuple[int, ...]  # the normalized ones, as numbered in that order
    layout: spec.Layout

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.layout.outer * self.layout.inner

    @property
    def is_strided(self) -> bool:
        """Whether a row's elements lie apart: channels first."""
        return self.layout.inner > 1

    @cached_property
    def is_as_given(self) -> bool:
        """Whether the axes are in the order that x has them in."""
        return self.axes == tuple(range(len(self.axes)))

    def tiles_of(self, rows: int) -> int:
        """How many tiles of so many rows there are."""
        if self.is_strided:
            return self.layout.outer * -(-self.layout.inner // rows)
        return -(-self.rows // rows)


@dataclass(frozen=True)
class Walked:
    """A tensor whose element (o, c, i) is at o * outer_stride + c * col_stride + i."""

    tensor: Tensor
    outer_stride: int
    col_stride: int


def order_of(x: Tensor, normalized: Axes) -> Order:
    """Choose the order that x has in memory; else the kept axes, then the normalized ones."""
    return _order_of(tuple(x.shape), x.stride(), normalized)


# Calls repeat themselves, and small ones take less time than these numbers.
@lru_cache(maxsize=4096)
def _order_of(shape: Axes, strides: Axes, normalized: Axes) -> Order:
    dims = len(shape)
    axes = [axis % dims for axis in normalized]
    in_memory = sorted(range(dims), key=lambda axis: -strides[axis] if shape[axis] != 1 else 0)
    for candidate in (range(dims), in_memory):
        order = _order(shape, tuple(candidate), axes)
        if order is not None and _strides_in(shape, strides, order) is not None:
            return order
    kept = [axis for axis in range(dims) if axis not in axes]
    order = _order(shape, (*kept, *sorted(axes)), axes)
    assert order is not None
    return order


def _order(shape: Axes, candidate: Axes, axes: Sequence[int]) -> Order | None:
    normalized = tuple(sorted(candidate.index(axis) for axis in axes))
    layout = spec.layout_of([shape[axis] for axis in candidate], normalized)
    return None if layout is None else Order(candidate, normalized, layout)


def collapse(tensor: Tensor, order: Order) -> Walked | None:
    """See the tensor as it lies, or None where that takes a copy."""
    found = _strides_in(tuple(tensor.shape), tensor.stride(), order)
    return None if found is None else Walked(tensor, *found)


@lru_cache(maxsize=4096)
def _strides_in(shape: Axes, strides: Axes, order: Order) -> tuple[int, int] | None:
    sizes, steps = ([given[axis] for axis in order.axes] for given in (shape, strides))
    found = spec.collapse(sizes, steps, order.normalized)
    return None if found is None else found[1:]


def to_read(tensor: Tensor, order: Order, *, vector: bool) -> Walked:
    """See the tensor, or a copy. `vector`: each row must start at a multiple of 16 bytes."""
    walked = collapse(tensor, order)
    if walked is not None and (not vector or _is_aligned(walked)):
        return walked
    copy = tensor.new_empty([tensor.shape[axis] for axis in order.axes])
    copy.copy_(tensor.permute(order.axes))
    return _contiguous(copy, order)


def _is_aligned(walked: Walked) -> bool:
    tensor = walked.tensor
    return tensor.data_ptr() % 16 == 0 and walked.outer_stride * tensor.element_size() % 16 == 0


def _contiguous(tensor: Tensor, order: Order) -> Walked:
    return Walked(tensor, order.layout.cols * order.layout.inner, order.layout.inner)


def to_write(tensor: Tensor, order: Order, *, vector: bool) -> Walked:
    """See the tensor, or a contiguous one that `flush` copies into it."""
    walked = collapse(tensor, order)
    if walked is not None and (not vector or _is_aligned(walked)):
        return walked
    return _contiguous(tensor.new_empty([tensor.shape[axis] for axis in order.axes]), order)


def flush(walked: Walked, tensor: Tensor, order: Order) -> None:
    """Copy what was written where it belongs, unless it is there."""
    if walked.tensor.data_ptr() != tensor.data_ptr():
        tensor.permute(order.axes).copy_(walked.tensor)


def parameter_to_read(
    parameter: Tensor | None, x: Tensor, normalized: Axes, order: Order, *, vector: bool
) -> Tensor | None:
    """Flatten weight or bias in the order of the columns."""
    if parameter is None:
        return None
    if parameter.dim() > 1:
        parameter = parameter.permute(_parameter_axes(x, normalized, order)).reshape(-1)
    flat = parameter.contiguous()
    return flat.clone() if vector and flat.data_ptr() % 16 else flat


def parameter_gradient(flat: Tensor, x: Tensor, normalized: Axes, order: Order) -> Tensor:
    """Give the flat gradient of a parameter the parameter's shape."""
    if len(normalized) == 1:
        return flat
    axes = _parameter_axes(x, normalized, order)
    ascending = sorted(axis % x.dim() for axis in normalized)
    sizes = [x.shape[ascending[axis]] for axis in axes]
    inverse = sorted(range(len(axes)), key=axes.__getitem__)
    return flat.reshape(sizes).permute(inverse).contiguous()


def _parameter_axes(x: Tensor, normalized: Axes, order: Order) -> list[int]:
    ascending = sorted(axis % x.dim() for axis in normalized)
    return [ascending.index(order.axes[place]) for place in order.normalized]


def statistics_to_read(saved: Tensor | None, order: Order) -> Tensor | None:
    """Lay out mean, rstd or residual as the rows are numbered."""
    if saved is None:
        return None
    if order.is_as_given:
        return saved.contiguous().view(-1)
    return saved.permute(order.axes).reshape(-1).contiguous()


def statistics_to_give(flat: Tensor, x: Tensor, normalized: Axes, order: Order) -> Tensor:
    """Give a statistic of each row x's axes, the normalized ones of size 1."""
    sizes = _sizes_of_statistics(tuple(x.shape), normalized, order.axes)
    assert math.prod(sizes) == flat.numel()
    if order.is_as_given:
        return flat.view(sizes)
    inverse = sorted(range(x.dim()), key=order.axes.__getitem__)
    return flat.reshape(sizes).permute(inverse).contiguous()


@lru_cache(maxsize=4096)
def _sizes_of_statistics(shape: Axes, normalized: Axes, order: Axes) -> Axes:
    axes = {axis % len(shape) for axis in normalized}
    return tuple(1 if axis in axes else shape[axis] for axis in order)
