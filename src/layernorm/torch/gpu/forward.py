"""The forward on a GPU: chooses the kernel, allocates and launches."""

from typing import NamedTuple

import torch
from torch import Tensor

from layernorm.torch import arguments, operators
from layernorm.torch.arguments import Definition
from layernorm.torch.gpu import long_rows, views
from layernorm.torch.gpu.axis_order import AxisOrder, order_of
from layernorm.torch.gpu.launch import launch
from layernorm.torch.gpu.views import View
from layernorm.triton import launch_config
from layernorm.triton.forward import forward as forward_kernel


class Results(NamedTuple):
    """y and the statistics, None where not wanted."""

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
        x, weight, bias: checked already. Weight and bias have the same shape: the normalized one,
            or one with all axes of x.
        save: return the statistics.
        contiguous: make y contiguous whatever x is, as PyTorch's own operator does.
    """
    y = x.new_empty(x.shape) if contiguous else operators.empty_as(x)
    axes = definition.axes
    parameter_shape = next((each.shape for each in (weight, bias) if each is not None), None)
    order = order_of(x, axes, parameter_shape)
    statistics = _empty_statistics(x, order, definition, save)
    if x.numel() > 0:
        cols, itemsize, strided = order.layout.cols, x.element_size(), order.is_strided
        vector = not strided and launch_config.is_vector(cols, itemsize)
        source = views.to_read(x, order, vector=vector)
        target = views.to_write(y, order, vector=vector)
        parameters = [
            views.flat_parameter(given, x, axes, order, vector=vector) for given in (weight, bias)
        ]
        tile = launch_config.row_tile(cols, itemsize, strided=strided)
        if tile is None:
            long_rows.forward(source, target, parameters, statistics, order, definition)
        else:
            _launch(source, target, parameters, statistics, order, definition, tile)
        views.copy_back(target, y, order)
    shaped = [
        None if each is None else views.shaped_statistic(each, x, axes, order)
        for each in statistics
    ]
    return Results(y, *shaped)


def _empty_statistics(
    x: Tensor, order: AxisOrder, definition: Definition, save: bool
) -> list[Tensor | None]:
    if not save:
        return [None, None, None]
    rstd = x.new_empty(order.rows, dtype=arguments.compute_type(x.dtype))
    if x.numel() == 0:  # rows without elements: the statistics that PyTorch returns
        rstd.fill_(float("nan"))
    if not definition.centered:
        return [None, rstd, None]
    if x.numel() == 0:
        return [torch.zeros_like(rstd), rstd, torch.zeros_like(rstd)]
    return [torch.empty_like(rstd), rstd, torch.empty_like(rstd)]


def _launch(
    x: View,
    y: View,
    parameters: list[Tensor | None],
    statistics: list[Tensor | None],
    order: AxisOrder,
    definition: Definition,
    tile: launch_config.Tile,
) -> None:
    launch(
        forward_kernel,
        order.tiles_of(tile.rows),
        (
            *(x.tensor, *parameters, y.tensor, *statistics),
            *(*order.index_arguments, *x.strides, *y.strides),
        ),
        tile.warps,
        COLS=order.layout.cols,
        EPS=definition.eps,
        CENTERED=definition.centered,
        HAS_WEIGHT=parameters[0] is not None,
        HAS_BIAS=parameters[1] is not None,
        ZERO_CENTERED=definition.zero_centered_weight,
        SAVE=statistics[1] is not None,
        STRIDED=order.is_strided,
        OUTER_AXES=order.outer_axes,
        VECTOR=tile.vector,
        ROWS=tile.rows,
        HIGH=tile.high,
        LOW=tile.low,
        GROUP_X=x.tensor.element_size() == 2,
        LATE_PARAMETERS=tile.late_parameters,
    )
