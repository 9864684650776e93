"""Tensors as the GPU kernels see them, (outer, cols, inner), copied only where necessary."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from torch import Tensor

from layernorm import spec
from layernorm.torch.arguments import Axes


@dataclass(frozen=True)
class AxisOrder:
    """An order of x's axes in which they collapse to (outer, cols, inner)."""

    axes: tuple[int, ...]  # of x, in this order
    normalized: tuple[int, ...]  # the positions of the normalized axes in this order
    layout: spec.Layout

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.layout.outer * self.layout.inner

    @property
    def is_strided(self) -> bool:
        """Whether the elements of a row are apart in memory: channels first."""
        return self.layout.inner > 1

    @cached_property
    def is_that_of_x(self) -> bool:
        """Whether the axes are in the order of x."""
        return self.axes == tuple(range(len(self.axes)))

    def tiles_of(self, rows: int) -> int:
        """Return the number of tiles of so many rows."""
        if self.is_strided:
            return self.layout.outer * -(-self.layout.inner // rows)
        return -(-self.rows // rows)


@dataclass(frozen=True)
class View:
    """A tensor whose element (o, c, i) is at o * outer_stride + c * col_stride + i."""

    tensor: Tensor
    outer_stride: int
    col_stride: int


def order_of(x: Tensor, normalized: Axes) -> AxisOrder:
    """Choose an order in which x needs no copy; else its own.

    Kept axes go before normalized ones where a kept axis separates those or rows are contiguous.
    """
    return _order_of(tuple(x.shape), x.stride(), normalized)


# Cached, because computing these numbers takes longer than the rest of a small call.
@lru_cache(maxsize=4096)
def _order_of(shape: Axes, strides: Axes, normalized: Axes) -> AxisOrder:
    dims = len(shape)
    axes = [axis % dims for axis in normalized]
    in_memory = sorted(range(dims), key=lambda axis: -strides[axis] if shape[axis] != 1 else 0)
    for candidate in (range(dims), in_memory):
        order = _order(shape, tuple(candidate), axes)
        if order is not None and _strides_in(shape, strides, order) is not None:
            return order
    # A sample alone may need no copy where a batch does, but is to get the same bits. So the order
    # follows from what they have in common.
    own = _order(shape, tuple(range(dims)), axes)
    row, steps = ([given[axis] for axis in sorted(axes)] for given in (shape, strides))
    has_contiguous_rows = spec.collapse(row, steps, range(len(row))) is not None
    if own is not None and not has_contiguous_rows:
        return own
    kept = [axis for axis in range(dims) if axis not in axes]
    order = _order(shape, (*kept, *sorted(axes)), axes)
    assert order is not None
    return order


def _order(shape: Axes, candidate: Axes, axes: Sequence[int]) -> AxisOrder | None:
    normalized = tuple(sorted(candidate.index(axis) for axis in axes))
    layout = spec.layout_of([shape[axis] for axis in candidate], normalized)
    return None if layout is None else AxisOrder(candidate, normalized, layout)


@lru_cache(maxsize=4096)
def _strides_in(shape: Axes, strides: Axes, order: AxisOrder) -> tuple[int, int] | None:
    sizes, steps = ([given[axis] for axis in order.axes] for given in (shape, strides))
    found = spec.collapse(sizes, steps, order.normalized)
    return None if found is None else found[1:]


def to_read(tensor: Tensor, order: AxisOrder, *, vector: bool) -> View:
    """View the tensor, or a copy if necessary.

    Args: `vector`: each row must start at a multiple of 16 bytes.
    """
    view = _view_of(tensor, order, vector)
    if view is None:
        view = _new_view(tensor, order)
        view.tensor.copy_(tensor.permute(order.axes))
    return view


def to_write(tensor: Tensor, order: AxisOrder, *, vector: bool) -> View:
    """View the tensor or, if necessary, a new one, which `copy_back` copies into it."""
    view = _view_of(tensor, order, vector)
    return _new_view(tensor, order) if view is None else view


def copy_back(view: View, tensor: Tensor, order: AxisOrder) -> None:
    """Copy what was written into the tensor, unless the view is of the tensor itself."""
    if view.tensor.data_ptr() != tensor.data_ptr():
        tensor.permute(order.axes).copy_(view.tensor)


def _view_of(tensor: Tensor, order: AxisOrder, vector: bool) -> View | None:
    found = _strides_in(tuple(tensor.shape), tensor.stride(), order)
    if found is None:
        return None
    is_aligned = tensor.data_ptr() % 16 == 0 and found[0] * tensor.element_size() % 16 == 0
    return View(tensor, *found) if is_aligned or not vector else None


def _new_view(tensor: Tensor, order: AxisOrder) -> View:
    new = tensor.new_empty([tensor.shape[axis] for axis in order.axes])
    return View(new, order.layout.cols * order.layout.inner, order.layout.inner)


def flat_parameter(
    parameter: Tensor | None, x: Tensor, normalized: Axes, order: AxisOrder, *, vector: bool
) -> Tensor | None:
    """Flatten weight or bias in the order of the columns."""
    if parameter is None:
        return None
    if parameter.dim() > 1:
        parameter = parameter.permute(_parameter_axes(x, normalized, order)).reshape(-1)
    flat = parameter.contiguous()
    return flat.clone() if vector and flat.data_ptr() % 16 else flat


def shaped_parameter(flat: Tensor, x: Tensor, normalized: Axes, order: AxisOrder) -> Tensor:
    """Give the flat gradient of a parameter the shape of the parameter."""
    if len(normalized) == 1:
        return flat
    axes = _parameter_axes(x, normalized, order)
    ascending = sorted(axis % x.dim() for axis in normalized)
    sizes = [x.shape[ascending[axis]] for axis in axes]
    inverse = sorted(range(len(axes)), key=axes.__getitem__)
    return flat.reshape(sizes).permute(inverse).contiguous()


def _parameter_axes(x: Tensor, normalized: Axes, order: AxisOrder) -> list[int]:
    ascending = sorted(axis % x.dim() for axis in normalized)
    return [ascending.index(order.axes[position]) for position in order.normalized]


def flat_statistic(saved: Tensor | None, order: AxisOrder) -> Tensor | None:
    """Flatten mean, rstd or residual in the order of the rows."""
    if saved is None:
        return None
    if order.is_that_of_x:
        return saved.contiguous().view(-1)
    return saved.permute(order.axes).reshape(-1).contiguous()


def shaped_statistic(flat: Tensor, x: Tensor, normalized: Axes, order: AxisOrder) -> Tensor:
    """Give a flat statistic the axes of x, the normalized ones of size 1."""
    sizes = _sizes_of_statistics(tuple(x.shape), normalized, order.axes)
    assert math.prod(sizes) == flat.numel()
    if order.is_that_of_x:
        return flat.view(sizes)
    inverse = sorted(range(x.dim()), key=order.axes.__getitem__)
    return flat.reshape(sizes).permute(inverse).contiguous()


@lru_cache(maxsize=4096)
def _sizes_of_statistics(shape: Axes, normalized: Axes, order: Axes) -> Axes:
    axes = {axis % len(shape) for axis in normalized}
    return tuple(1 if axis in axes else shape[axis] for axis in order)
