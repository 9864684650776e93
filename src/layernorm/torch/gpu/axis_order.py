"""The order of x's axes in which the GPU kernels read it, (outer, cols, inner).

Outer is one axis, or up to three: before, member, after. A member is a group of rows with weight
and bias of its own.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from torch import Tensor

from layernorm import spec
from layernorm.torch.arguments import Axes

Strides = tuple[int, int, int, int]


@dataclass(frozen=True)
class AxisOrder:
    """An order of x's axes in which they collapse to (outer, cols, inner)."""

    axes: tuple[int, ...]  # of x, in this order
    normalized: tuple[int, ...]  # the positions of the normalized axes in this order
    layout: spec.Layout
    # The positions of the axes of before, member and after, each of which has a stride. None: outer
    # has one stride, and all rows have the same weight and bias.
    parts: tuple[Axes, Axes, Axes] | None = None
    members: int = 1
    after: int = 1

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.layout.outer * self.layout.inner

    @property
    def is_strided(self) -> bool:
        """Whether the elements of a row are apart in memory: channels first."""
        return self.layout.inner > 1

    @property
    def outer_axes(self) -> int:
        """How many axes outer is for the kernels: two where before or after is empty."""
        if self.parts is None:
            return 1
        return 3 if self.parts[0] and self.parts[2] else 2

    @property
    def index_arguments(self) -> tuple[int, int, int, int]:
        """The sizes from which a kernel computes where its rows are."""
        return self.rows, self.layout.inner, self.members, self.after

    @cached_property
    def is_that_of_x(self) -> bool:
        """Whether the axes are in the order of x."""
        return self.axes == tuple(range(len(self.axes)))

    def tiles_of_member(self, rows: int) -> int:
        """Return how many tiles of so many rows a member has."""
        if self.is_strided:
            return self.layout.outer // self.members * -(-self.layout.inner // rows)
        return -(-self.rows // self.members // rows)

    def tiles_of(self, rows: int) -> int:
        """Return the number of tiles of so many rows."""
        return self.members * self.tiles_of_member(rows)


def order_of(
    x: Tensor, normalized: Axes, parameter_shape: Sequence[int] | None = None
) -> AxisOrder:
    """Choose an order in which x needs no copy; else its own.

    Kept axes go before normalized ones where a kept axis separates those or rows are contiguous.

    Args: `parameter_shape`: of weight and bias, if there are any: the normalized shape, or one with
        all axes of x.
    """
    varying: Axes = ()
    if parameter_shape is not None and len(parameter_shape) > len(normalized):
        axes = {axis % x.dim() for axis in normalized}
        sizes = enumerate(parameter_shape)
        varying = tuple(axis for axis, size in sizes if size != 1 and axis not in axes)
    return _order_of(tuple(x.shape), x.stride(), normalized, varying)


# Cached, because computing these numbers takes longer than the rest of a small call.
@lru_cache(maxsize=4096)
def _order_of(shape: Axes, strides: Axes, normalized: Axes, varying: Axes) -> AxisOrder:
    dims = len(shape)
    axes = [axis % dims for axis in normalized]
    in_memory = sorted(range(dims), key=lambda axis: -strides[axis] if shape[axis] != 1 else 0)
    candidates = [tuple(range(dims)), tuple(in_memory)]
    if varying:
        return _order_of_members(shape, strides, candidates, axes, varying)
    orders = [_collapsed(shape, candidate, axes) for candidate in candidates]
    in_two = (each for order in orders if order is not None for each in _in_two(shape, order))
    for order in (*orders, *in_two):
        if order is not None and strides_in(shape, strides, order) is not None:
            return order
    # A sample alone may need no copy where a batch does, but is to get the same bits. So the order
    # follows from what they have in common.
    own = orders[0]
    row, steps = ([given[axis] for axis in sorted(axes)] for given in (shape, strides))
    has_contiguous_rows = spec.collapse(row, steps, range(len(row))) is not None
    if own is not None and not has_contiguous_rows:
        return own
    kept = [axis for axis in range(dims) if axis not in axes]
    order = _collapsed(shape, (*kept, *sorted(axes)), axes)
    assert order is not None
    return order


def _order_of_members(
    shape: Axes, strides: Axes, candidates: list[Axes], axes: list[int], varying: Axes
) -> AxisOrder:
    """Choose the order of one member alone, whose bits each is to get.

    Where x would need a copy with the members in their own place, they come first, in a copy.
    """
    member = tuple(1 if axis in varying else size for axis, size in enumerate(shape))
    alone = _order_of(member, strides, tuple(axes), ())
    others = [axis for axis in alone.axes if axis not in varying]

    def has_order_of_member(candidate: Axes) -> bool:
        matters = [axis for axis in candidate if member[axis] != 1 or axis in axes]
        return matters == [axis for axis in others if member[axis] != 1 or axis in axes]

    for candidate in filter(has_order_of_member, candidates):
        order = _with_members(shape, candidate, axes, varying)
        if order is not None and strides_in(shape, strides, order) is not None:
            return order
    order = _with_members(shape, (*varying, *others), axes, varying)
    assert order is not None
    return order


def _collapsed(shape: Axes, candidate: Axes, axes: Sequence[int]) -> AxisOrder | None:
    normalized = tuple(sorted(candidate.index(axis) for axis in axes))
    layout = spec.layout_of([shape[axis] for axis in candidate], normalized)
    return None if layout is None else AxisOrder(candidate, normalized, layout)


def _in_two(shape: Axes, order: AxisOrder) -> Iterator[AxisOrder]:
    """Cut outer in two in each way: where it does not have one stride, its parts may."""
    outer = _outer(shape, order)
    for cut in range(1, len(outer)):
        yield _in_parts(shape, order, (outer[:cut], (), outer[cut:]))


def _with_members(
    shape: Axes, candidate: Axes, axes: Sequence[int], varying: Axes
) -> AxisOrder | None:
    """Return None unless the varying axes are neighbors in outer."""
    order = _collapsed(shape, candidate, axes)
    if order is None:
        return None
    outer = _outer(shape, order)
    own = tuple(position for position in outer if candidate[position] in varying)
    if len(own) < len(varying):
        return None
    first = outer.index(own[0])
    end = first + len(own)
    if outer[first:end] != own:
        return None
    return _in_parts(shape, order, (outer[:first], own, outer[end:]))


def _outer(shape: Axes, order: AxisOrder) -> Axes:
    """Return the positions of the kept axes before the normalized ones, without those of size 1."""
    sizes = [shape[axis] for axis in order.axes]
    first = next((each for each in order.normalized if sizes[each] != 1), order.normalized[0])
    return tuple(each for each in range(first) if sizes[each] != 1 and each not in order.normalized)


def _in_parts(shape: Axes, order: AxisOrder, parts: tuple[Axes, Axes, Axes]) -> AxisOrder:
    members, after = (math.prod(shape[order.axes[each]] for each in part) for part in parts[1:])
    return replace(order, parts=parts, members=members, after=after)


@lru_cache(maxsize=4096)
def strides_in(shape: Axes, strides: Axes, order: AxisOrder) -> Strides | None:
    """Return the strides of a `View`; None if a tensor of these strides must be copied."""
    sizes, steps = ([given[axis] for axis in order.axes] for given in (shape, strides))
    if order.parts is None:
        found = spec.collapse(sizes, steps, order.normalized)
        return None if found is None else (found[1], 0, 0, found[2])
    outer, col = [], 0
    for part in order.parts:
        others = {each for other in order.parts if other != part for each in other}
        alone = [1 if each in others else size for each, size in enumerate(sizes)]
        found = spec.collapse(alone, steps, order.normalized)
        if found is None:
            return None
        _, stride, col = found
        outer.append(stride)
    before, member, after = outer
    if order.outer_axes == 2:
        return before if order.parts[0] else after, member, 0, col
    return before, member, after, col
