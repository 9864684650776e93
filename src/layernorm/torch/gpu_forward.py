"""The forward on a GPU: chooses the kernel, allocates, launches."""

from typing import NamedTuple

import torch
from torch import Tensor

from layernorm.torch import gpu_arrays, operators
from layernorm.torch.arguments import Definition
from layernorm.torch.gpu_arrays import Order, Walked
from layernorm.torch.gpu_launch import launch
from layernorm.triton import plan
from layernorm.triton.forward import forward as forward_kernel
from layernorm.triton.wide import wide_forward, wide_squares, wide_sums


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
    order = gpu_arrays.order_of(x, axis)
    itemsize = x.element_size()
    tile = None
    if order.is_strided:
        tile = plan.strided_tile(order.layout.cols, itemsize)
        if tile is None:
            order = gpu_arrays.rows_order(x, axis)
    if tile is None:
        tile = plan.rows_tile(order.layout.cols, itemsize)
    flat = _empty_statistics(x, order, definition, save)
    if x.numel() > 0:
        vector = not order.is_strided and plan.is_vector(order.layout.cols, itemsize)
        walked = gpu_arrays.to_read(x, order, vector=vector)
        target = gpu_arrays.to_write(y, order, vector=vector, contiguous=tile is None)
        parameters = [
            gpu_arrays.parameter_to_read(given, x, axis, order, vector=vector)
            for given in (weight, bias)
        ]
        if tile is None:
            _wide(walked, target.tensor, parameters, flat, order, definition)
        else:
            _tiles(walked, target, parameters, flat, order, definition, tile)
        gpu_arrays.flush(target, y, order)
    given = [
        None if each is None else gpu_arrays.statistics_to_give(each, x, axis, order)
        for each in flat
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
    inner_blocks = -(-layout.inner // tile.rows)
    tiles = layout.outer * inner_blocks if order.is_strided else -(-order.rows // tile.rows)
    nothing = x.tensor
    launch(
        forward_kernel,
        tiles,
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


class Partials(NamedTuple):
    """What the chunks of each row leave for the next step: (rows, chunks), float64 but for one."""

    largest: Tensor
    sum: Tensor
    rest: Tensor
    squares: Tensor


def empty_partials(x: Tensor, rows: int, chunks: plan.Chunks) -> Partials:
    """Allocate them."""
    wide = x.new_empty((3, rows, chunks.pieces), dtype=torch.float64)
    largest = x.new_empty((rows, chunks.pieces), dtype=operators.compute_type(x))
    return Partials(largest, *wide.unbind(0))


def measure_chunks(
    x: Tensor,
    rows: int,
    outer_stride: int,
    cols: int,
    definition: Definition,
    chunks: plan.Chunks,
    partials: Partials,
    rstd: Tensor | None = None,
) -> None:
    """Leave the sums that the rows' statistics are made of.

    `rstd`: only those of rows whose saved rstd the backward cannot use.
    """
    common = {"COLS": cols, "CENTERED": definition.centered}
    shape = {"VECTOR": chunks.vector, "CHUNKS": chunks.pieces}
    tile = {"HIGH": chunks.high, "LOW": chunks.low}
    saved = partials.largest if rstd is None else rstd
    launch(
        wide_sums,
        rows * chunks.pieces,
        (x, saved, partials.largest, partials.sum, outer_stride),
        chunks.warps,
        **common,
        ONLY_EXTRAORDINARY=rstd is not None,
        **shape,
        **tile,
    )
    launch(
        wide_squares,
        rows * chunks.pieces,
        (x, saved, saved, *partials, outer_stride),
        chunks.warps,
        COLS=cols,
        EPS=definition.eps,
        CENTERED=definition.centered,
        GIVEN_MEAN=False,
        ONLY_EXTRAORDINARY=rstd is not None,
        **shape,
        MOST=chunks.most,
        **tile,
    )


def _wide(
    x: Walked,
    y: Tensor,
    parameters: list[Tensor | None],
    statistics: list[Tensor | None],
    order: Order,
    definition: Definition,
) -> None:
    cols, itemsize = order.layout.cols, x.tensor.element_size()
    chunks = plan.chunks_of(cols, itemsize)
    together = min(order.rows, plan.rows_together(cols, itemsize))
    partials = empty_partials(x.tensor, together, chunks)
    x_rows = x.tensor.as_strided((order.rows, cols), (x.outer_stride, 1))
    y_rows = y.view(order.rows, cols)
    for first in range(0, order.rows, together):
        part = slice(first, min(order.rows, first + together))
        rows = part.stop - part.start
        given = x_rows[part]
        measure_chunks(given, rows, x.outer_stride, cols, definition, chunks, partials)
        saved = [given if each is None else each[part] for each in statistics]
        launch(
            wide_forward,
            rows * chunks.pieces,
            (
                given,
                *(given if each is None else each for each in parameters),
                y_rows[part],
                *(saved if statistics[1] is not None else [partials.largest] * 3),
                *(*partials, x.outer_stride),
            ),
            chunks.warps,
            COLS=cols,
            EPS=definition.eps,
            CENTERED=definition.centered,
            HAS_WEIGHT=parameters[0] is not None,
            HAS_BIAS=parameters[1] is not None,
            ZERO_CENTERED=definition.zero_centered_weight,
            SAVE=statistics[1] is not None,
            VECTOR=chunks.vector,
            CHUNKS=chunks.pieces,
            MOST=chunks.most,
            HIGH=chunks.high,
            LOW=chunks.low,
        )
