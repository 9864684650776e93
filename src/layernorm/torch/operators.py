"""The operators of the namespace `layernorm`: what PyTorch needs besides their kernels.

    layer_norm, rms_norm                     -> y and the statistics
    layer_norm_backward, rms_norm_backward   -> dx, dweight, dbias; those not needed are empty

The compiled module defines the schemas and the CPU kernels (native/bindings/torch/operators.cc).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import _is_non_overlapping_and_dense_or_false as _is_dense

from layernorm import spec
from layernorm.torch import arguments, c_api, derivatives
from layernorm.torch.arguments import Axes, Definition, normalize_axes
from layernorm.torch.signatures import backward_operators, forward_operators

assert c_api, "importing it defines the operators"


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, definition: Definition
) -> tuple[Tensor, ...]:
    """Return y and the statistics."""
    options = (list(definition.axes), definition.eps, definition.zero_centered_weight)
    ops = torch.ops.layernorm
    if definition.centered:
        return ops.layer_norm(x, weight, bias, *options)
    return ops.rms_norm(x, weight, *options)


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    need: Sequence[bool],
    statistics: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Return dx, dweight and (layer norm) dbias; those not needed are empty."""
    options = (list(definition.axes), definition.eps, definition.zero_centered_weight)
    ops = torch.ops.layernorm
    if definition.centered:
        return ops.layer_norm_backward(dy, x, *statistics, weight, bias, *options, list(need))
    return ops.rms_norm_backward(dy, x, *statistics, weight, *options, list(need[:2]))


# ---- shapes, types and strides, for tensors without data


def empty_as(x: Tensor) -> Tensor:
    """Allocate y or dx: with x's strides if x is dense, else contiguous."""
    if x.is_contiguous() or x.numel() == 0 or not _is_dense(x.shape, x.stride()):
        return x.new_empty(x.shape)
    return x.new_empty_strided(x.shape, x.stride())


def _empty_statistics(x: Tensor, axes: Axes) -> Tensor:
    sizes = [1 if each - x.dim() in axes else size for each, size in enumerate(x.shape)]
    return x.new_empty(sizes, dtype=arguments.compute_type(x.dtype))


def _empty_parameter(x: Tensor, axes: Axes, dtype: torch.dtype) -> Tensor:
    return x.new_empty(spec.normalized_shape(x.shape, axes), dtype=dtype)


def parameter_type(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> torch.dtype:
    """Return the type of dweight and dbias: that of the parameters, or x's if there are none."""
    given = bias if weight is None else weight
    return x.dtype if given is None else given.dtype


def nothing(x: Tensor) -> Tensor:
    """Return the empty tensor that replaces a gradient that is not needed."""
    return x.new_empty(0, dtype=torch.float32)


def _fake_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, definition: Definition
) -> tuple[Tensor, ...]:
    arguments.check_devices(x, weight=weight, bias=bias)
    statistics = 3 if definition.centered else 1
    return empty_as(x), *[_empty_statistics(x, definition.axes) for _ in range(statistics)]


def _fake_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    need: Sequence[bool],
    statistics: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    arguments.check_devices(x, dy=dy, weight=weight, bias=bias)
    dtype = parameter_type(x, weight, bias)
    dx = empty_as(x) if need[0] else nothing(x)
    axes = definition.axes
    return dx, *[_empty_parameter(x, axes, dtype) if n else nothing(x) for n in need[1:]]


for _name, _fake in (forward_operators(_fake_forward) | backward_operators(_fake_backward)).items():
    torch.library.register_fake(f"layernorm::{_name}")(_fake)


# ---- gradients of an operator called directly or in a compiled graph


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, *bias, axis, eps, zero_centered_weight = inputs
    statistics = output[1:]  # mean, rstd, residual; rstd alone for RMS norm
    ctx.mark_non_differentiable(*statistics)
    ctx.save_for_backward(x, weight, *(bias or [None]), *statistics)
    ctx.definition = Definition(
        normalize_axes(axis, x.dim()), eps, len(statistics) == 3, zero_centered_weight
    )


def _forward_gradients(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, *statistics = ctx.saved_tensors
    need = needed(ctx.needs_input_grad, weight, bias)
    gradients = backward(dy, x, weight, bias, ctx.definition, need, statistics)
    return *[g if n else None for g, n in zip(gradients, need, strict=False)], None, None, None


def needed(
    needs_input_grad: Sequence[bool], weight: Tensor | None, bias: Tensor | None
) -> tuple[bool, bool, bool]:
    """Return which of dx, dweight and dbias are needed; not those of absent parameters."""
    return (
        needs_input_grad[0],
        weight is not None and needs_input_grad[1],
        bias is not None and needs_input_grad[2],
    )


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, x, *rest, axis, eps, zero_centered_weight, need = inputs
    centered = len(need) == 3
    ctx.save_for_backward(dy, x, rest[3] if centered else rest[1])
    ctx.definition = Definition(normalize_axes(axis, x.dim()), eps, centered, zero_centered_weight)
    ctx.need = tuple(need)


def _backward_gradients(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    dy, x, weight = ctx.saved_tensors
    of_dy, of_x, of_weight = second_gradients(dy, x, weight, ctx.definition, ctx.need, gradients)
    statistics, rest = (3, 5) if ctx.definition.centered else (1, 4)
    return of_dy, of_x, *(None,) * statistics, of_weight, *(None,) * rest


def second_gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    definition: Definition,
    need: Sequence[bool],
    gradients: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients with respect to dy, x and weight, given those for dx, dweight, dbias."""
    rows = derivatives.rows_of(x, weight, definition)
    wanted = [g if n else None for g, n in zip(gradients, need, strict=False)]
    u, p, q = (*wanted, None)[:3]
    of_dy, of_x, of_weight = derivatives.backward_gradients(rows, dy, u, p, q)
    if weight is None or of_weight is None:
        return of_dy.to(dy.dtype), of_x.to(x.dtype), None
    return of_dy.to(dy.dtype), of_x.to(x.dtype), of_weight.to(weight.dtype)


for _name in ("layer_norm", "rms_norm"):
    torch.library.register_autograd(
        f"layernorm::{_name}", _forward_gradients, setup_context=_save_forward
    )
    torch.library.register_autograd(
        f"layernorm::{_name}_backward", _backward_gradients, setup_context=_save_backward
    )


# ---- batches of calls (vmap)


def _each(
    function: Callable[..., tuple[Tensor, ...]], info: Any, in_dims: Any, arguments: Sequence[Any]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Call the function once for each member of the batch, for the bits of separate calls."""
    results = [
        function(
            *[
                given if dim is None or not isinstance(given, Tensor) else given.select(dim, index)
                for given, dim in zip(arguments, in_dims, strict=True)
            ]
        )
        for index in range(info.batch_size)
    ]
    stacked = tuple(torch.stack(each) for each in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _vmap_forward(name: str, parameters: int) -> Callable[..., Any]:
    def rule(info: Any, in_dims: Any, x: Tensor, *rest: Any) -> Any:
        function = getattr(torch.ops.layernorm, name)
        given, (axis, *options) = rest[:parameters], rest[parameters:]
        if in_dims[0] is None or any(dim is not None for dim in in_dims[1 : 1 + parameters]):
            return _each(function, info, in_dims, (x, *rest))
        x = x.movedim(in_dims[0], 0)
        results = function(x, *given, normalize_axes(axis, x.dim() - 1), *options)
        return results, (0,) * len(results)

    return rule


def _vmap_backward(name: str) -> Callable[..., Any]:
    def rule(info: Any, in_dims: Any, *arguments: Any) -> Any:
        function = getattr(torch.ops.layernorm, name)
        return _each(function, info, in_dims, arguments)

    return rule


torch.library.register_vmap("layernorm::layer_norm", _vmap_forward("layer_norm", 2))
torch.library.register_vmap("layernorm::rms_norm", _vmap_forward("rms_norm", 1))
for _name in ("layer_norm_backward", "rms_norm_backward"):
    torch.library.register_vmap(f"layernorm::{_name}", _vmap_backward(_name))
