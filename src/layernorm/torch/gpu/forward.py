"""The forward on a GPU: chooses the kernel, allocates and launches."""

from typing import NamedTuple

import torch
from torch import Tensor

from layernorm.torch import arguments, operators
from layernorm.torch.arguments import Definition
from layernorm.torch.gpu import long_rows, views
from layernorm.torch.gpu.axis_order import AxisOrder, order_of, strides_in
from layernorm.torch.gpu.gates import Gate
from layernorm.torch.gpu.launch import launch
from layernorm.torch.gpu.views import View, strides_of, tensor_of
from layernorm.triton import launch_config
from layernorm.triton.forward import forward as forward_kernel


class Quantization(NamedTuple):
    """The type of q, and the scales of the rows, to be written, or the given one of all rows."""

    type: str | None = None  # None: y is written
    scales: Tensor | None = None
    scale: Tensor | None = None

    @property
    def tensor(self) -> Tensor | None:
        """The tensor of the scales, or of the given one."""
        return self.scales if self.scale is None else self.scale

    @property
    def constants(self) -> dict[str, str | bool | None]:
        """The constants of a kernel that quantizes."""
        return {"QUANTIZED": self.type, "GIVEN_SCALE": self.scale is not None}


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    *,
    addend: Tensor | None = None,
    gate: Tensor | None = None,
    save: bool = True,
    contiguous: bool = False,
) -> tuple[Tensor | None, ...]:
    """Normalize x, or total = x + addend, on its device, which must be the current one.

    With a gate y is norm(x) * act(gate), or norm(x * act(gate)), as the definition says.

    Args:
        x, weight, bias, addend: checked already. Weight and bias have the same shape: the
            normalized one, or one with all axes of x. The addend has x's shape and type.
        gate: of x's shape and type too; not beside an addend.
        save: return the statistics.
        contiguous: make y contiguous whatever x is, as PyTorch's own operator does.
    Returns: y, total if there is an addend, and mean, rstd and residual, None where not wanted.
    """
    y = x.new_empty(x.shape) if contiguous else operators.empty_as(x)
    total = None if addend is None else torch.empty_like(y)
    axes = definition.axes
    parameter_shape = next((each.shape for each in (weight, bias) if each is not None), None)
    order = order_of(x, axes, parameter_shape)
    if total is not None and strides_in(tuple(total.shape), total.stride(), order) is None:
        # An x with gaps. In total's order y has the bits of total's own norm; x takes the copy.
        order = order_of(total, axes, parameter_shape)
    statistics = _empty_statistics(x, order, definition, save)
    if x.numel() > 0:
        cols, itemsize, strided = order.layout.cols, x.element_size(), order.is_strided
        vector = not strided and launch_config.is_vector(cols, itemsize)
        source = views.to_read(x, order, vector=vector)
        target = views.to_write(y, order, vector=vector)
        added = None if addend is None else views.to_read(addend, order, vector=vector)
        total_view = None if total is None else views.to_write(total, order, vector=vector)
        gating = Gate.of(gate, definition, order, vector=vector)
        parameters = [
            views.flat_parameter(given, x, axes, order, vector=vector) for given in (weight, bias)
        ]
        tile = launch_config.row_tile(cols, itemsize, strided=strided)
        given = (source, target, parameters, statistics, order, definition, gating)
        if tile is None:
            long_rows.forward(*given, addend=added, total=total_view)
        else:
            launch_rows(*given, tile, addend=added, total=total_view)
        views.copy_back(target, y, order)
        if total is not None and total_view is not None:
            views.copy_back(total_view, total, order)
    shaped = [
        None if each is None else views.shaped_statistic(each, x, axes, order)
        for each in statistics
    ]
    return *([y] if total is None else [y, total]), *shaped


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


def launch_rows(
    x: View,
    y: View,
    parameters: list[Tensor | None],
    statistics: list[Tensor | None],
    order: AxisOrder,
    definition: Definition,
    gate: Gate,
    tile: launch_config.Tile,
    *,
    addend: View | None = None,
    total: View | None = None,
    quantization: Quantization | None = None,
) -> None:
    """Launch the kernel of rows that fit into one program. `quantization`: q is written to y."""
    quantization = quantization or Quantization()
    launch(
        forward_kernel,
        order.tiles_of(tile.rows),
        (
            *(x.tensor, *parameters, y.tensor, *statistics),
            *(tensor_of(addend), tensor_of(total), gate.tensor, quantization.tensor),
            *(*order.index_arguments, *x.strides, *y.strides),
            *(*strides_of(addend), *strides_of(total), *gate.strides),
        ),
        tile.warps,
        COLS=order.layout.cols,
        EPS=definition.eps,
        CENTERED=definition.centered,
        HAS_WEIGHT=parameters[0] is not None,
        HAS_BIAS=parameters[1] is not None,
        ZERO_CENTERED=definition.zero_centered_weight,
        SAVE=statistics[1] is not None,
        ADDEND=addend is not None,
        **gate.constants,
        **quantization.constants,
        STRIDED=order.is_strided,
        OUTER_AXES=order.outer_axes,
        VECTOR=tile.vector,
        ROWS=tile.rows,
        HIGH=tile.high,
        LOW=tile.low,
        GROUP_X=x.tensor.element_size() == 2 and gate.of_x is None,
        LATE_PARAMETERS=tile.late_parameters,
    )
