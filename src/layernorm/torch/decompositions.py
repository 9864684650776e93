"""Our operators in terms of PyTorch's own, for exporters that know only those, such as ONNX.

torch.compile does not use them: it calls our kernels.
"""

import torch
from torch import Tensor
from torch._decomp import register_decomposition

from layernorm.torch import arguments, derivatives, operators
from layernorm.torch.arguments import Definition
from layernorm.torch.signatures import forward_operators

assert operators, "importing it defines what is decomposed"


def y_of(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
) -> Tensor:
    """Return y from PyTorch's own function, with the normalized axes moved last."""
    axes = definition.axes
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


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, definition: Definition
) -> tuple[Tensor, ...]:
    rstd = derivatives.rows_of(x, None, definition).rstd
    statistics = [rstd]
    if definition.centered:
        mean = x.to(rstd.dtype).mean(definition.axes, keepdim=True)
        statistics = [mean, rstd, mean - mean]
    dtype = arguments.compute_type(x.dtype)
    return y_of(x, weight, bias, definition), *[each.to(dtype) for each in statistics]


for _name, _function in forward_operators(_forward).items():
    register_decomposition(getattr(torch.ops.layernorm, _name).default)(_function)
