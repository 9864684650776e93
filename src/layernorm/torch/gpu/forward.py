"""The forward on a GPU: chooses the kernel, allocates, launches. Wide rows: long_rows.py."""

from typing import NamedTuple

import torch
from torch import Tensor

from layernorm.torch import operators
from layernorm.torch.arguments import Definition
from layernorm.torch.gpu import arrays, long_rows
from layernorm.torch.gpu.arrays import Order, Walked
from layernorm.torch.gpu.launch import launch
from layernorm.triton import plan
from layernorm.triton.forward import forward as forward_kernel


class Results(NamedTuple):
    """y and the statistics, those that were asked for."""

    y: Tensor
    mean: Tensor | None
    rstd: Tensor | None
    residual: Tensor | None


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    *,
    save: bool = True,
    contiguous: bool = False,
) -> Results:
    """Normalize x on its device, which must be the current one.

    Args:
        x, weight, bias: checked already.
        definition: axes, eps and the rest.
        save: whether the statistics are wanted.
        contiguous: y is contiguous whatever x is, as PyTorch's own is.
    """
    y = x.new_empty(x.shape) if contiguous else operators.empty_as(x)
    axis = definition.axis
    order = arrays.order_of(x, axis)
    itemsize = x.element_size()
    tile_of = plan.strided_tile if order.is_strided else plan.rows_tile
    tile = tile_of(order.layout.cols, itemsize)
    flat = _empty_statistics(x, order, definition, save)
    if x.numel() > 0:
        vector = not order.is_strided and plan.is_vector(order.layout.cols, itemsize)
        walked = arrays.to_read(x, order, vector=vector)
        target = arrays.to_write(y, order, vector=vector)
        parameters = [
            arrays.parameter_to_read(given, x, axis, order, vector=vector)
            for given in (weight, bias)
        ]
        if tile is None:
            long_rows.forward(walked, target, parameters, flat, order, definition)
        else:
            _tiles(walked, target, parameters, flat, order, definition, tile)
        arrays.flush(target, y, order)
    given = [
        None if each is None else arrays.statistics_to_give(each, x, axis, order) for each in flat
    ]
    return Results(y, *given)


def _empty_statistics(
    x: Tensor, order: Order, definition: Definition, save: bool
) -> list[Tensor | None]:
    if not save:
        return [None, None, None]
    rstd = x.new_empty(order.rows, dtype=operators.compute_type(x))
    if x.numel() == 0:  # as PyTorch has them where there is nothing to take the mean of
        rstd.fill_(float("nan"))
    if not definition.centered:
        return [None, rstd, None]
    if x.numel() == 0:
        return [torch.zeros_like(rstd), rstd, torch.zeros_like(rstd)]
    return [torch.empty_like(rstd), rstd, torch.empty_like(rstd)]


def _tiles(
    x: Walked,
    y: Walked,
    parameters: list[Tensor | None],
    statistics: list[Tensor | None],
    order: Order,
    definition: Definition,
    tile: plan.Tile,
) -> None:
    layout = order.layout
    nothing = x.tensor
    launch(
        forward_kernel,
        order.tiles_of(tile.rows),
        (
            x.tensor,
            *(nothing if each is None else each for each in parameters),
            y.tensor,
            *(nothing if each is None else each for each in statistics),
            *(order.rows, layout.inner),
            *(x.outer_stride, x.col_stride, y.outer_stride, y.col_stride),
        ),
        tile.warps,
        COLS=layout.cols,
        EPS=definition.eps,
        CENTERED=definition.centered,
        HAS_WEIGHT=parameters[0] is not None,
        HAS_BIAS=parameters[1] is not None,
        ZERO_CENTERED=definition.zero_centered_weight,
        SAVE=statistics[1] is not None,
        STRIDED=order.is_strided,
        VECTOR=tile.vector,
        ROWS=tile.rows,
        HIGH=tile.high,
        LOW=tile.low,
        GROUP_X=x.tensor.element_size() == 2,
        LATE_PARAMETERS=tile.late_parameters,
    )
