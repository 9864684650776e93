"""Tensors as the GPU kernels see them, (outer, cols, inner), copied only where necessary."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from layernorm.torch.arguments import Axes
from layernorm.torch.gpu.axis_order import AxisOrder, Strides, strides_in


@dataclass(frozen=True)
class View:
    """A tensor and its strides along outer, member, after and cols; along inner it is 1.

    With two axes of outer, the stride along outer is that of a member's own rows; with three, that
    of before. Those of axes that an order does not have are 0.
    """

    tensor: Tensor
    strides: Strides


def tensor_of(view: View | None) -> Tensor | None:
    """Return the tensor of a view, if there is one."""
    return None if view is None else view.tensor


def strides_of(view: View | None) -> Strides:
    """Return the strides of a view; zeros, which a kernel ignores, for None."""
    return (0, 0, 0, 0) if view is None else view.strides


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
    found = strides_in(tuple(tensor.shape), tensor.stride(), order)
    if found is None:
        return None
    offsets = tensor.data_ptr(), *(stride * tensor.element_size() for stride in found[:3])
    if vector and any(offset % 16 for offset in offsets):
        return None
    return View(tensor, found)


def _new_view(tensor: Tensor, order: AxisOrder) -> View:
    new = tensor.new_empty([tensor.shape[axis] for axis in order.axes])
    inverse = sorted(range(tensor.dim()), key=order.axes.__getitem__)
    found = strides_in(tuple(tensor.shape), new.permute(inverse).stride(), order)
    assert found is not None
    return View(new, found)


def flat_parameter(
    parameter: Tensor | None, x: Tensor, normalized: Axes, order: AxisOrder, *, vector: bool
) -> Tensor | None:
    """Flatten weight or bias in the order of the members and the columns."""
    if parameter is None:
        return None
    if parameter.dim() > len(normalized):
        parameter = parameter.permute(order.axes).reshape(-1)
    elif parameter.dim() > 1:
        parameter = parameter.permute(_parameter_axes(x, normalized, order)).reshape(-1)
    flat = parameter.contiguous()
    return flat.clone() if vector and flat.data_ptr() % 16 else flat


def shaped_parameter(
    flat: Tensor, shape: Sequence[int], x: Tensor, normalized: Axes, order: AxisOrder
) -> Tensor:
    """Give the flat gradient of a parameter the shape of the parameter."""
    if len(shape) == 1:
        return flat
    of_columns = len(shape) == len(normalized)
    axes = _parameter_axes(x, normalized, order) if of_columns else order.axes
    sizes = [shape[axis] for axis in axes]
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
