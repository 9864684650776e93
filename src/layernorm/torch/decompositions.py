"""Our operators in PyTorch's own, for exporters that know no others: ONNX from an ExportedProgram.

Nothing that runs here uses them: the compiler calls our kernels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._decomp import register_decomposition

from layernorm.torch import derivatives, operators
from layernorm.torch.arguments import Definition

assert operators, "importing it defines what is decomposed"

_ops = torch.ops.layernorm


def y_of(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
) -> Tensor:
    """Return y from PyTorch's own function, the normalized axes moved last where they are not."""
    axes = definition.axis
    last = tuple(range(-len(axes), 0))
    if axes != last:
        x = x.movedim(axes, last)
    if definition.zero_centered_weight and weight is not None:
        weight = 1 + weight
    shape = x.shape[-len(axes) :]
    if definition.centered:
        y = torch.nn.functional.layer_norm(x, shape, weight, bias, definition.eps)
    else:
        y = torch.nn.functional.rms_norm(x, shape, weight, definition.eps)
    return y if axes == last else y.movedim(last, axes)


@register_decomposition(_ops.layer_norm.default)
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    axis: Sequence[int],
    eps: float,
    zero_centered_weight: bool = False,
) -> tuple[Tensor, ...]:
    definition = Definition(operators.negative(axis, x.dim()), eps, True, zero_centered_weight)
    rows = derivatives.rows_of(x, None, definition)
    mean = x.to(rows.rstd.dtype).mean(definition.axis, keepdim=True)
    statistics = [each.to(operators.compute_type(x)) for each in (mean, rows.rstd, mean - mean)]
    return y_of(x, weight, bias, definition), *statistics


@register_decomposition(_ops.rms_norm.default)
def _(
    x: Tensor,
    weight: Tensor | None,
    axis: Sequence[int],
    eps: float,
    zero_centered_weight: bool = False,
) -> tuple[Tensor, ...]:
    definition = Definition(operators.negative(axis, x.dim()), eps, False, zero_centered_weight)
    rows = derivatives.rows_of(x, None, definition)
    return y_of(x, weight, None, definition), rows.rstd.to(operators.compute_type(x))
