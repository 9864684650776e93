"""Norms in 8 bits on a GPU: in one launch, or for long rows of the norm that the others write."""

import torch
from torch import Tensor

from layernorm.torch import arguments
from layernorm.torch.arguments import Definition
from layernorm.torch.gpu import views
from layernorm.torch.gpu.axis_order import AxisOrder, order_of
from layernorm.torch.gpu.forward import Quantization, forward, launch_rows
from layernorm.torch.gpu.gates import Gate
from layernorm.torch.gpu.launch import launch
from layernorm.torch.gpu.views import View
from layernorm.triton import launch_config
from layernorm.triton.quantized import quantize_rows


def quantized(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    quantized_type: str,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Return q = y / scale, where y is what `forward` returns, and the scales of the rows.

    Args:
        x, weight, bias: as in `forward`.
        quantized_type: one of `spec.QUANTIZED_TYPES`.
        scale: for all rows: one element of the compute type, on x's device. None: one for each row.
    Returns: the bytes of q as int8, contiguous, and the scales, with x's normalized axes of size 1,
        or None with a given scale.
    """
    axes = definition.axes
    q = x.new_empty(x.shape, dtype=torch.int8)
    parameter_shape = next((each.shape for each in (weight, bias) if each is not None), None)
    order = order_of(x, axes, parameter_shape)
    scales = None
    if scale is None:
        scales = x.new_empty(order.rows, dtype=arguments.compute_type(x.dtype))
    if x.numel() > 0:
        cols, itemsize, strided = order.layout.cols, x.element_size(), order.is_strided
        vector = not strided and launch_config.is_vector(cols, itemsize)
        target = views.to_write(q, order, vector=False)  # aligned, as all new tensors are
        quantization = Quantization(quantized_type, scales, scale)
        tile = launch_config.row_tile(cols, itemsize, strided=strided)
        if tile is None:
            y, *_ = forward(x, weight, bias, definition, save=False)
            source = views.to_read(y, order, vector=vector)
            _launch_long_rows(source, target, order, quantization)
        else:
            source = views.to_read(x, order, vector=vector)
            parameters = [
                views.flat_parameter(each, x, axes, order, vector=vector) for each in (weight, bias)
            ]
            given = (source, target, parameters, [None] * 3, order, definition, Gate(), tile)
            launch_rows(*given, quantization=quantization)
        views.copy_back(target, q, order)
    elif scales is not None:  # those of rows of zeros
        scales.fill_(torch.finfo(scales.dtype).tiny)
    return q, None if scales is None else views.shaped_statistic(scales, x, axes, order)


def _launch_long_rows(y: View, q: View, order: AxisOrder, quantization: Quantization) -> None:
    cols = order.layout.cols
    tile = launch_config.long_row_tile(cols, y.tensor.element_size(), strided=order.is_strided)
    launch(
        quantize_rows,
        order.tiles_of(tile.rows),
        (y.tensor, q.tensor, quantization.tensor, *order.index_arguments, *y.strides, *q.strides),
        tile.warps,
        COLS=cols,
        **quantization.constants,
        STRIDED=order.is_strided,
        OUTER_AXES=order.outer_axes,
        VECTOR=tile.vector,
        BLOCKS=tile.blocks,
        ROWS=tile.rows,
        HIGH=tile.high,
        LOW=tile.low,
    )
