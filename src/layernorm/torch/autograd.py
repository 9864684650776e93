"""Autograd's nodes: a short one for plain calls, and one that every transform of PyTorch takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers

from layernorm import _native
from layernorm.torch import arguments, derivatives, operators
from layernorm.torch.arguments import Definition
from layernorm.torch.gpu import operators as gpu


class PlainNorm(torch.autograd.Function):
    """The node of a call that `_native.torch_try_forward` has found plain, and worked out.

    Its backward is the compiled module's, past the dispatcher; where that is watched or
    transformed, or differentiated again, it goes through `NormBackward`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        result: tuple[Tensor, tuple[Any, ...]],
    ) -> Tensor:
        """Return y."""
        y, ctx.rest = result  # the rest holds bias too: the backward needs its shape and type alone
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        """Return dx, dweight, dbias."""
        x, weight = ctx.saved_tensors
        gradients = _native.torch_try_backward(x, weight, ctx.rest, dy, ctx.needs_input_grad)
        return _watched_backward(ctx, dy, x, weight) if gradients is None else gradients


# Function.apply asks about transforms before it calls this; torch_try_forward has asked already.
apply_plain_norm = super(torch.autograd.Function, PlainNorm).apply


def has_gradient(*tensors: Tensor | None) -> bool:
    """Tell whether what is made of these has a gradient with respect to one of them."""
    return torch.is_grad_enabled() and any(
        each is not None and each.requires_grad for each in tensors
    )


def apply(node: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Apply a node; its own `apply` also reads its signature, for transforms and for defaults."""
    if torch._C._are_functorch_transforms_active():
        return node.apply(*arguments)
    return super(torch.autograd.Function, node).apply(*unwrap_dead_wrappers(arguments))


def _watched_backward(
    ctx: Any, dy: Tensor, x: Tensor, weight: Tensor | None
) -> tuple[Tensor | None, ...]:
    bias, normalized_shape, eps, centered, zero_centered_weight, statistics = ctx.rest
    count = 1 if isinstance(normalized_shape, int) else len(normalized_shape)
    sizes = (*x.shape[:-count], *(1,) * count)
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    kinds = torch.frombuffer(bytearray(statistics), dtype=compute).chunk(3 if centered else 1)
    eps = arguments.machine_epsilon(x.dtype) if eps is None else eps
    definition = Definition(tuple(range(-count, 0)), eps, centered, zero_centered_weight)
    parts = [each.reshape(sizes) for each in kinds]
    return *_gradients(ctx, dy, x, weight, bias, definition, parts), None


def _gradients(
    ctx: Any,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    statistics: Sequence[Tensor],
) -> list[Tensor | None]:
    """Return dx, dweight and dbias, differentiable again; None for what is not needed."""
    need = operators.needed(ctx.needs_input_grad, weight, bias)
    if not torch.is_grad_enabled() and gpu.may_bypass_dispatcher(dy, x, weight, bias):
        results = gpu.backward(dy, x, weight, bias, definition, need, statistics)
    else:
        results = apply(NormBackward, dy, x, weight, bias, definition, _Need(need), *statistics)
    gradients = [g if n else None for g, n in zip(results, need, strict=False)]
    return [*gradients, None][:3]


class Norm(torch.autograd.Function):
    """The node of any other call: reverse and forward mode, gradients of gradients, functorch."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, definition: Definition
    ) -> tuple[Tensor, ...]:
        """Return y and the statistics."""
        if gpu.may_bypass_dispatcher(x, weight, bias):
            return gpu.forward(x, weight, bias, definition)
        return operators.forward(x, weight, bias, definition)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep what the derivatives need."""
        x, weight, bias, ctx.definition = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.rest = None
        if torch._C._are_functorch_transforms_active():  # only what is saved is unwrapped
            ctx.save_for_backward(x, weight, bias, *output[1:])
        else:  # as PlainNorm, whose place it may take where a checkpoint runs the forward again
            ctx.save_for_backward(x, weight)
            ctx.rest = bias, *output[1:]
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Any, ...]:
        """Return dx, dweight, dbias."""
        x, weight, *rest = ctx.saved_tensors
        bias, *statistics = ctx.rest or rest
        return *_gradients(ctx, dy, x, weight, bias, ctx.definition, statistics), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        """Return the tangent of y."""
        x, weight = ctx.saved_tensors[:2]
        rows = derivatives.rows_of(x, weight, ctx.definition)
        tangent = derivatives.forward_tangent(rows, *tangents[:3]).to(x.dtype)
        return tangent, *(None,) * (3 if ctx.definition.centered else 1)


@dataclass(frozen=True)
class _Need:
    """Which gradients are needed. (No tuple: functorch would take it apart.)"""

    flags: tuple[bool, ...]


class NormBackward(torch.autograd.Function):
    """The node of the backward, for gradients of gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        definition: Definition,
        need: _Need,
        *statistics: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return dx, dweight and (layer norm) dbias, without elements where not needed."""
        return operators.backward(dy, x, weight, bias, definition, need.flags, statistics)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep what the derivatives need."""
        dy, x, weight, _, ctx.definition, ctx.need, *statistics = inputs
        ctx.statistics_count = len(statistics)
        ctx.save_for_backward(dy, x, weight)
        ctx.save_for_forward(dy, x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """Return the gradients of dy, x and weight."""
        dy, x, weight = ctx.saved_tensors
        second = operators.second_gradients(
            dy, x, weight, ctx.definition, ctx.need.flags, gradients
        )
        return *second, *(None,) * (3 + ctx.statistics_count)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        """Return the tangents of dx, dweight and dbias."""
        dy, x, weight = ctx.saved_tensors
        rows = derivatives.rows_of(x, weight, ctx.definition)
        results = derivatives.backward_tangents(rows, dy, *tangents[:3])
        parameter_type = x.dtype if weight is None else weight.dtype
        types = (x.dtype, parameter_type, parameter_type)
        return tuple(
            result.to(dtype) if needed else result.new_zeros(0, dtype=torch.float32)
            for result, dtype, needed in zip(results, types, ctx.need.flags, strict=True)
        )[: 3 if ctx.definition.centered else 2]
