"""Autograd's nodes: one for the fast path, and one that all of PyTorch's transforms accept."""

import functools
from collections.abc import Callable, Sequence
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


class FastPathNormOfSum(torch.autograd.Function):
    """The node of a call with a residual that took the fast path."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        result: tuple[Tensor, Tensor, tuple[Any, ...]],
        residual: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return y and total."""
        y, total, ctx.rest = result
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total, weight)
        return y, total

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dtotal: Tensor | None) -> tuple[Any, ...]:
        """Return dx, dweight, dbias, and the gradient of the residual, which is dx."""
        total, weight = ctx.saved_tensors
        if dy is None:
            return dtotal, None, None, None, dtotal
        needs_x, *needs = ctx.needs_input_grad
        need = (needs_x or needs[-1], *needs)
        gradients = _native.torch_try_backward(total, weight, ctx.rest, dy, need, dtotal)
        if gradients is None:
            gradients = _general_backward(ctx, dy, total, weight, dtotal)
        return *gradients, gradients[0]


def recorder(node: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Return what applies a node of the fast path, with less around it than `Function.apply`.

    That first looks for transforms, as torch_try_forward has done; and autograd would look for
    the name of the backward in every call, half a microsecond.
    """
    node._backward_cls.apply = node.backward
    return super(torch.autograd.Function, node).apply


# (x, weight, bias, result) -> y, with its node; (..., residual) -> y and total.
record_fast_path = recorder(FastPathNorm)
record_fast_path_of_sum = recorder(FastPathNormOfSum)


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
    ctx: Any, dy: Tensor, x: Tensor, weight: Tensor | None, dtotal: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    definition, statistics = definition_of_rest(x, ctx.rest)
    bias = ctx.rest[0]
    return *_gradients(ctx, dy, x, weight, bias, definition, statistics, dtotal), None


def definition_of_rest(
    x: Tensor, rest: tuple[Any, ...], gating: tuple[bool, bool] = (True, True)
) -> tuple[Definition, list[Tensor]]:
    """Return the definition and the statistics of a fast path's `rest`."""
    _, normalized_shape, eps, centered, zero_centered_weight, statistics = rest
    count = len(normalized_shape)
    sizes = (*x.shape[:-count], *(1,) * count)
    dtype = arguments.compute_type(x.dtype)
    parts = torch.frombuffer(bytearray(statistics), dtype=dtype).chunk(3 if centered else 1)
    axes = tuple(range(-count, 0))
    definition = Definition(axes, eps, centered, zero_centered_weight, *gating)
    return definition, [each.reshape(sizes) for each in parts]


def _gradients(
    ctx: Any,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    statistics: Sequence[Tensor],
    dtotal: Tensor | None = None,
) -> list[Tensor | None]:
    """Return dx, dweight and dbias, differentiable again; None for what is not needed."""
    # The last input is the residual, or has no gradient.
    needs_dx = ctx.needs_input_grad[0] or ctx.needs_input_grad[-1]
    need = operators.needed((needs_dx, *ctx.needs_input_grad[1:]), weight, bias)
    if weight is None or bias is None or weight.shape == bias.shape:
        return _gradients_of(dy, x, weight, bias, definition, need, statistics, dtotal)
    # Each of its own shape, by a call that sums over the rows that share it. dbias needs no weight.
    dx, dweight, _ = _gradients_of(
        dy, x, weight, None, definition, (*need[:2], False), statistics, dtotal
    )
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
    dtotal: Tensor | None = None,
) -> list[Tensor | None]:
    if not any(need):
        return [None, None, None]
    if not need[0]:
        dtotal = None
    if not torch.is_grad_enabled() and gpu.may_bypass_dispatcher(dy, x, weight, bias, dtotal):
        results = gpu.backward(dy, x, weight, bias, definition, need, statistics, dtotal=dtotal)
    else:
        needs = _Need(need)
        results = apply(NormBackward, dy, x, weight, bias, dtotal, definition, needs, *statistics)
    gradients = [g if n else None for g, n in zip(results, need, strict=False)]
    return [*gradients, None][:3]


class Norm(torch.autograd.Function):
    """The node of all other calls: reverse and forward mode, second derivatives, functorch."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        definition: Definition,
        addend: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Return y and the statistics; with an addend y, total = x + addend, and the statistics."""
        if gpu.may_bypass_dispatcher(x, weight, bias, addend):
            parameters = arguments.repeated(weight, bias)
            return gpu.forward(x, *parameters, definition, addend=addend)
        return operators.forward(x, weight, bias, definition, addend=addend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Save what the derivatives need."""
        x, weight, bias, ctx.definition, addend = inputs
        ctx.adds = addend is not None
        statistics = output[1:]
        if ctx.adds:
            x, *statistics = statistics
            ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*statistics)
        ctx.rest = None
        if torch._C._are_functorch_transforms_active():  # they unwrap saved tensors only
            ctx.save_for_backward(x, weight, bias, *statistics)
        else:  # as FastPathNorm saves, which this may replace where a checkpoint recomputes y
            ctx.save_for_backward(x, weight)
            ctx.rest = bias, *statistics
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
        """Return dx, dweight, dbias; with an addend its gradient, which is dx, last."""
        x, weight, *rest = ctx.saved_tensors
        bias, *statistics = ctx.rest or rest
        dtotal = others[0] if ctx.adds else None
        if dy is None:  # y is not used
            dx, of_parameters = dtotal, [None, None]
        else:
            dx, *of_parameters = _gradients(
                ctx, dy, x, weight, bias, ctx.definition, statistics, dtotal
            )
        return dx, *of_parameters, None, dx if ctx.adds else None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        """Return the tangent of y, and of total."""
        x, weight = ctx.saved_tensors[:2]
        rows = derivatives.rows_of(x, weight, ctx.definition)
        x_tangent, of_weight, of_bias, _, of_addend = tangents
        if ctx.adds:
            given = [each for each in (x_tangent, of_addend) if each is not None]
            x_tangent = functools.reduce(torch.add, given or [torch.zeros_like(x)])
        of_y = derivatives.forward_tangent(rows, x_tangent, of_weight, of_bias).to(x.dtype)
        without = (None,) * (3 if ctx.definition.centered else 1)
        return (of_y, x_tangent, *without) if ctx.adds else (of_y, *without)


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
        dtotal: Tensor | None,
        definition: Definition,
        need: _Need,
        *statistics: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return dx plus dtotal, dweight and (layer norm) dbias; those not needed are empty."""
        return operators.backward(
            dy, x, weight, bias, definition, need.flags, statistics, dtotal=dtotal
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Save what the derivatives need."""
        dy, x, weight, bias, dtotal, ctx.definition, ctx.need, *statistics = inputs
        ctx.adds = dtotal is not None
        ctx.statistics_count = len(statistics)
        ctx.save_for_backward(dy, x, weight)
        ctx.save_for_forward(dy, x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """Return the gradients of dy, x, weight and dtotal."""
        dy, x, weight = ctx.saved_tensors
        second = operators.second_gradients(
            dy, x, weight, ctx.definition, ctx.need.flags, gradients
        )
        of_dtotal = gradients[0] if ctx.adds and ctx.need.flags[0] else None
        return *second, None, of_dtotal, *(None,) * (2 + ctx.statistics_count)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        """Return the tangents of dx, dweight and dbias."""
        dy, x, weight, bias = ctx.saved_tensors
        rows = derivatives.rows_of(x, weight, ctx.definition, bias)
        of_dx, *of_parameters = derivatives.backward_tangents(rows, dy, *tangents[:3])
        if tangents[4] is not None:
            of_dx = of_dx + tangents[4]
        results = (of_dx, *of_parameters)
        parameter_type = x.dtype if weight is None else weight.dtype
        types = (x.dtype, parameter_type, parameter_type)
        return tuple(
            result.to(dtype) if needed else result.new_zeros(0, dtype=torch.float32)
            for result, dtype, needed in zip(results, types, ctx.need.flags, strict=True)
        )[: 3 if ctx.definition.centered else 2]
