"""Autograd's nodes: one for the fast path, and one that all of PyTorch's transforms accept."""

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


class FastPathNorm(torch.autograd.Function):
    """The node of a call that took the fast path: `_native.torch_try_forward` or `..._over_axes`.

    Its backward takes the fast path too. Where a mode, a transform or a profiler must see the
    operator, or the backward is differentiated again, it goes through `NormBackward`.
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
        # bias is in `rest`, not saved: the backward needs its shape and type alone.
        y, ctx.rest = result
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        """Return dx, dweight, dbias."""
        x, weight = ctx.saved_tensors
        gradients = _native.torch_try_backward(x, weight, ctx.rest, dy, ctx.needs_input_grad)
        return _general_backward(ctx, dy, x, weight) if gradients is None else gradients


# (x, weight, bias, result) -> y, with its node. Not Function.apply, which first looks for
# transforms, as torch_try_forward has done.
record_fast_path = super(torch.autograd.Function, FastPathNorm).apply


def requires_gradient(*tensors: Tensor | None) -> bool:
    """Tell whether a result of these tensors needs a node in autograd's graph."""
    return torch.is_grad_enabled() and any(
        each is not None and each.requires_grad for each in tensors
    )


def apply(node: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Apply a node, without the cost of binding its signature where no transform is active."""
    if torch._C._are_functorch_transforms_active():
        return node.apply(*arguments)
    return super(torch.autograd.Function, node).apply(*unwrap_dead_wrappers(arguments))


def _general_backward(
    ctx: Any, dy: Tensor, x: Tensor, weight: Tensor | None
) -> tuple[Tensor | None, ...]:
    bias, normalized_shape, eps, centered, zero_centered_weight, statistics = ctx.rest
    count = len(normalized_shape)
    sizes = (*x.shape[:-count], *(1,) * count)
    dtype = arguments.compute_type(x.dtype)
    parts = torch.frombuffer(bytearray(statistics), dtype=dtype).chunk(3 if centered else 1)
    definition = Definition(tuple(range(-count, 0)), eps, centered, zero_centered_weight)
    shaped = [each.reshape(sizes) for each in parts]
    return *_gradients(ctx, dy, x, weight, bias, definition, shaped), None


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
    if weight is None or bias is None or weight.shape == bias.shape:
        return _gradients_of(dy, x, weight, bias, definition, need, statistics)
    # Each of its own shape, by a call that sums over the rows that share it. dbias needs no weight.
    dx, dweight, _ = _gradients_of(dy, x, weight, None, definition, (*need[:2], False), statistics)
    of_bias = (False, False, need[2])
    dbias = _gradients_of(dy, x, None, bias, definition, of_bias, statistics)[2]
    return [dx, dweight, dbias]


def _gradients_of(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    need: tuple[bool, bool, bool],
    statistics: Sequence[Tensor],
) -> list[Tensor | None]:
    if not any(need):
        return [None, None, None]
    if not torch.is_grad_enabled() and gpu.may_bypass_dispatcher(dy, x, weight, bias):
        results = gpu.backward(dy, x, weight, bias, definition, need, statistics)
    else:
        results = apply(NormBackward, dy, x, weight, bias, definition, _Need(need), *statistics)
    gradients = [g if n else None for g, n in zip(results, need, strict=False)]
    return [*gradients, None][:3]


class Norm(torch.autograd.Function):
    """The node of all other calls: reverse and forward mode, second derivatives, functorch."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, definition: Definition
    ) -> tuple[Tensor, ...]:
        """Return y and the statistics."""
        if gpu.may_bypass_dispatcher(x, weight, bias):
            return gpu.forward(x, *arguments.repeated(weight, bias), definition)
        return operators.forward(x, weight, bias, definition)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Save what the derivatives need."""
        x, weight, bias, ctx.definition = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.rest = None
        if torch._C._are_functorch_transforms_active():  # they unwrap saved tensors only
            ctx.save_for_backward(x, weight, bias, *output[1:])
        else:  # as FastPathNorm saves, which this may replace where a checkpoint recomputes y
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
    """Which gradients are needed. Not a tuple, because functorch flattens tuples."""

    flags: tuple[bool, ...]


class NormBackward(torch.autograd.Function):
    """The node of the backward, for second derivatives."""

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
        """Return dx, dweight and (layer norm) dbias; those not needed are empty."""
        return operators.backward(dy, x, weight, bias, definition, need.flags, statistics)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Save what the derivatives need."""
        dy, x, weight, bias, ctx.definition, ctx.need, *statistics = inputs
        ctx.statistics_count = len(statistics)
        ctx.save_for_backward(dy, x, weight)
        ctx.save_for_forward(dy, x, weight, bias)

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
        dy, x, weight, bias = ctx.saved_tensors
        rows = derivatives.rows_of(x, weight, ctx.definition, bias)
        results = derivatives.backward_tangents(rows, dy, *tangents[:3])
        parameter_type = x.dtype if weight is None else weight.dtype
        types = (x.dtype, parameter_type, parameter_type)
        return tuple(
            result.to(dtype) if needed else result.new_zeros(0, dtype=torch.float32)
            for result, dtype, needed in zip(results, types, ctx.need.flags, strict=True)
        )[: 3 if ctx.definition.centered else 2]
