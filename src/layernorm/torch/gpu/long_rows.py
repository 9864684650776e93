"""Forward and backward of long rows, which take several launches: one group of tiles at a time."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from layernorm.torch import arguments
from layernorm.torch.arguments import Definition
from layernorm.torch.gpu.axis_order import AxisOrder
from layernorm.torch.gpu.gates import Gate
from layernorm.torch.gpu.launch import launch
from layernorm.torch.gpu.views import View, strides_of, tensor_of
from layernorm.triton import launch_config
from layernorm.triton.long_row_backward import (
    long_row_dx,
    long_row_gradient_sums,
    long_row_normalizer,
)
from layernorm.triton.long_row_forward import long_row_forward
from layernorm.triton.long_row_statistics import long_row_squares, long_row_sums


class Partials(NamedTuple):
    """Partial sums of the rows in each block, (tiles, blocks, rows), float64.

    Of the compute type are largest, and center, (tiles, rows), which rest and squares are around.
    """

    largest: Tensor
    sum: Tensor
    center: Tensor
    rest: Tensor
    squares: Tensor

    @property
    def statistics(self) -> tuple[Tensor, ...]:
        """Those of which the statistics are made."""
        return self.largest, self.center, self.rest, self.squares


class Group(NamedTuple):
    """Tiles of x that go through all launches before the next group, to stay in the L2 cache."""

    first_tile: int
    tiles: int
    x: View
    order: AxisOrder
    tile: launch_config.LongRowTile
    partials: Partials
    definition: Definition
    gate: Gate

    @property
    def programs(self) -> int:
        """The number of blocks."""
        return self.tiles * self.tile.blocks

    @property
    def index_arguments(self) -> tuple[int, ...]:
        """The arguments from which a kernel computes its rows."""
        return self.first_tile, *self.order.index_arguments

    @property
    def x_arguments(self) -> tuple[int, ...]:
        """The arguments from which a kernel computes its addresses in x."""
        return *self.index_arguments, *self.x.strides

    @property
    def tile_constants(self) -> dict[str, int]:
        """The constants of a kernel that describe its blocks."""
        return {
            "STRIDED": self.order.is_strided,
            "OUTER_AXES": self.order.outer_axes,
            "VECTOR": self.tile.vector,
            "BLOCKS": self.tile.blocks,
            "ROWS": self.tile.rows,
            "HIGH": self.tile.high,
            "LOW": self.tile.low,
        }

    def launch_sums(
        self,
        rstd: Tensor | None = None,
        *,
        addend: View | None = None,
        total: View | None = None,
    ) -> "Group":
        """Store all partial sums, and total = x + addend if given; return the group of total or x.

        Args: `rstd`: only for rows whose saved rstd is out of range.
        """
        launch(
            long_row_sums,
            self.programs,
            (
                *(self.x.tensor, rstd, self.partials.largest, self.partials.sum),
                *(tensor_of(addend), tensor_of(total), self.gate.tensor, *self.x_arguments),
                *(*strides_of(addend), *strides_of(total), *self.gate.strides),
            ),
            self.tile.warps,
            COLS=self.order.layout.cols,
            CENTERED=self.definition.centered,
            ADDEND=addend is not None,
            GATE_X=self.gate.of_x,
            ONLY_OUT_OF_RANGE=rstd is not None,
            **self.tile_constants,
        )
        group = self if total is None else self._replace(x=total)
        group.launch_squares(rstd=rstd)
        return group

    def launch_squares(self, *, mean: Tensor | None = None, rstd: Tensor | None = None) -> None:
        """Store the partial sums of x - mean and its square. `mean`: the saved mean of the rows."""
        launch(
            long_row_squares,
            self.programs,
            (
                *(self.x.tensor, mean, rstd, *self.partials, self.gate.tensor),
                *(*self.x_arguments, *self.gate.strides),
            ),
            self.tile.warps,
            COLS=self.order.layout.cols,
            EPS=self.definition.eps,
            CENTERED=self.definition.centered,
            GATE_X=self.gate.of_x,
            GIVEN_MEAN=mean is not None,
            ONLY_OUT_OF_RANGE=rstd is not None,
            **self.tile_constants,
            PADDED_BLOCKS=self.tile.padded_blocks,
        )


def _groups(
    x: View, order: AxisOrder, definition: Definition, gate: Gate, *, arrays_read: int
) -> Iterator[Group]:
    """Split the tiles into groups; `arrays_read`: how many a launch reads beside the gate."""
    arrays_read += gate.view is not None
    cols, itemsize = order.layout.cols, x.tensor.element_size()
    tile = launch_config.long_row_tile(cols, itemsize, strided=order.is_strided)
    tiles = order.tiles_of(tile.rows)
    size = min(tiles, launch_config.tiles_in_group(cols, itemsize * arrays_read, tile))
    shape = (size, tile.blocks, tile.rows)
    dtype = arguments.compute_type(x.tensor.dtype)
    largest = x.tensor.new_empty(shape, dtype=dtype)
    center = x.tensor.new_empty((size, tile.rows), dtype=dtype)
    total, rest, squares = x.tensor.new_empty((3, *shape), dtype=torch.float64).unbind(0)
    partials = Partials(largest, total, center, rest, squares)
    for first in range(0, tiles, size):
        yield Group(first, min(size, tiles - first), x, order, tile, partials, definition, gate)


def forward(
    x: View,
    y: View,
    parameters: Sequence[Tensor | None],
    statistics: Sequence[Tensor | None],
    order: AxisOrder,
    definition: Definition,
    gate: Gate,
    *,
    addend: View | None,
    total: View | None,
) -> None:
    """Write y, the statistics that are not None, and with an addend total, which is normalized."""
    arrays_read = 1 if addend is None else 2
    for group_of_x in _groups(x, order, definition, gate, arrays_read=arrays_read):
        group = group_of_x.launch_sums(addend=addend, total=total)
        launch(
            long_row_forward,
            group.programs,
            (
                *(group.x.tensor, *parameters, y.tensor, *statistics),
                *(*group.partials.statistics, gate.tensor),
                *(*group.x_arguments, *y.strides, *gate.strides),
            ),
            group.tile.warps,
            COLS=order.layout.cols,
            EPS=definition.eps,
            CENTERED=definition.centered,
            HAS_WEIGHT=parameters[0] is not None,
            HAS_BIAS=parameters[1] is not None,
            ZERO_CENTERED=definition.zero_centered_weight,
            SAVE=statistics[1] is not None,
            **gate.constants,
            **group.tile_constants,
            PADDED_BLOCKS=group.tile.padded_blocks,
        )


def backward(
    dy: View,
    x: View,
    parameters: Sequence[Tensor | None],
    order: AxisOrder,
    definition: Definition,
    gate: Gate,
    *,
    eps: float | None,
    statistics: Sequence[Tensor | None],
    dx: View | None,
    dgate: View | None,
    dtotal: View | None,
    normalizer: Tensor | None,
) -> None:
    """Write dx, plus dtotal, dgate, and the normalizer (4, rows) for dweight and dbias.

    Args:
        eps: None if not known: then nothing is recomputed or corrected.
        statistics: mean, rstd and residual, flat, or None.
        dx, dgate, normalizer: None where not needed. dtotal: None if there is none.
    """
    if normalizer is None:
        normalizer = x.tensor.new_empty(
            (4, order.rows), dtype=arguments.compute_type(x.tensor.dtype)
        )
    for group in _groups(x, order, definition, gate, arrays_read=2):
        _launch_normalizer(group, statistics, eps, normalizer)
        if dx is not None or dgate is not None:
            _launch_dx(group, dy, parameters, eps, normalizer, dx, dgate, dtotal)


def _launch_normalizer(
    group: Group, statistics: Sequence[Tensor | None], eps: float | None, normalizer: Tensor
) -> None:
    mean, rstd, residual = statistics
    if mean is not None and residual is None:
        group.launch_squares(mean=mean)
    if eps is not None:
        group.launch_sums(rstd)
    launch(
        long_row_normalizer,
        group.tiles,
        (*statistics, normalizer, *group.partials.statistics, *group.index_arguments),
        launch_config.warps_for_partials(group.tile),
        COLS=group.order.layout.cols,
        EPS=eps,
        CENTERED=group.definition.centered,
        HAS_RESIDUAL=residual is not None,
        STRIDED=group.order.is_strided,
        OUTER_AXES=group.order.outer_axes,
        BLOCKS=group.tile.blocks,
        ROWS=group.tile.rows,
        PADDED_BLOCKS=group.tile.padded_blocks,
    )


def _launch_dx(
    group: Group,
    dy: View,
    parameters: Sequence[Tensor | None],
    eps: float | None,
    normalizer: Tensor,
    dx: View | None,
    dgate: View | None,
    dtotal: View | None,
) -> None:
    x, gate, partials = group.x.tensor, group.gate, group.partials
    weight, bias = parameters
    exponents = torch.empty_like(partials.largest, dtype=torch.int32)
    sums = (exponents, partials.sum, partials.rest, partials.squares)
    strides = (*group.x_arguments, *dy.strides, *gate.strides)
    constants = {
        "COLS": group.order.layout.cols,
        "CENTERED": group.definition.centered,
        "HAS_WEIGHT": weight is not None,
        "ZERO_CENTERED": group.definition.zero_centered_weight,
        **gate.constants,
        **group.tile_constants,
    }
    launch(
        long_row_gradient_sums,
        group.programs,
        (x, dy.tensor, weight, normalizer, *sums, gate.tensor, *strides),
        group.tile.warps,
        **constants,
    )
    launch(
        long_row_dx,
        group.programs,
        (
            *(x, dy.tensor, weight, tensor_of(dx), normalizer, *sums),
            *(tensor_of(dtotal), bias, gate.tensor, tensor_of(dgate)),
            *(*strides, *strides_of(dx), *strides_of(dtotal), *strides_of(dgate)),
        ),
        group.tile.warps,
        **constants,
        EPS=eps,
        HAS_BIAS=bias is not None,
        NEED_DX=dx is not None,
        NEED_DGATE=dgate is not None,
        DTOTAL=dtotal is not None,
        PADDED_BLOCKS=group.tile.padded_blocks,
    )
