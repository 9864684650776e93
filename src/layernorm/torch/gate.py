"""Autograd's node of a norm with a gate: y = norm(x) * act(gate), or norm(x * act(gate))."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from layernorm import _native, spec
from layernorm.torch import arguments, derivatives, fallback, operators
from layernorm.torch.arguments import Definition
from layernorm.torch.autograd import definition_of_rest, recorder
from layernorm.torch.gpu import operators as gpu


class FastPathGatedNorm(torch.autograd.Function):
    """The node of a call that took the fast path, as its backward does where it can."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        result: tuple[Tensor, tuple[Any, ...]],
        gate: Tensor,
        gating: tuple[bool, bool],
    ) -> Tensor:
        """Return y."""
        y, ctx.rest = result
        ctx.gating = gating
        ctx.save_for_backward(x, weight, bias, gate)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        """Return dx, dweight, dbias, and after None for the result dgate."""
        x, weight, bias, gate = ctx.saved_tensors
        needs_input_grad = ctx.needs_input_grad
        gradients = _native.torch_try_backward(
            x, weight, ctx.rest, dy, needs_input_grad, None, gate, *ctx.gating
        )
        if gradients is not None:
            return *gradients, None
        definition, statistics = definition_of_rest(x, ctx.rest, ctx.gating)
        need = (*operators.needed(needs_input_grad, weight, bias), needs_input_grad[4])
        of_tensors = _gradients_of(dy, x, gate, weight, bias, definition, need, statistics)
        dx, dweight, dbias, dgate = of_tensors
        return dx, dweight, dbias, None, dgate, None


# (x, weight, bias, result, gate, gating) -> y, with its node: as `autograd.record_fast_path`.
record_fast_path_of_gate = recorder(FastPathGatedNorm)


class GatedNorm(torch.autograd.Function):
    """The node. The kernels compute first derivatives; what will be differentiated again, and what
    a transform of `torch.func` sees, is computed by the formulas of `derivatives`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        gate: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        definition: Definition,
    ) -> tuple[Tensor, ...]:
        """Return y and the statistics."""
        if gpu.may_bypass_dispatcher(x, gate, weight, bias):
            return gpu.forward(x, *arguments.repeated(weight, bias), definition, gate=gate)
        return operators.forward(x, weight, bias, definition, gate=gate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Save what the derivatives need."""
        *tensors, ctx.definition = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Any, ...]:
        """Return dx, dgate, dweight and dbias."""
        x, gate, weight, bias, *statistics = ctx.saved_tensors
        needs_x, needs_gate, *needs_parameters, _definition = ctx.needs_input_grad
        need = (
            *operators.needed((needs_x, *needs_parameters), weight, bias),
            needs_gate,
        )
        dx, dweight, dbias, dgate = _gradients_of(
            dy, x, gate, weight, bias, ctx.definition, need, statistics
        )
        return dx, dgate, dweight, dbias, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        """Return the tangent of y."""
        x, gate, weight, bias = ctx.saved_tensors[:4]
        *of_tensors, _ = tangents
        of_y = derivatives.gated_tangent(
            x, gate, weight, bias, ctx.definition, tuple(of_tensors)
        ).to(x.dtype)
        return of_y, *(None,) * (3 if ctx.definition.centered else 1)


def _gradients_of(
    dy: Tensor,
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    need: Sequence[bool],
    statistics: Sequence[Tensor],
) -> list[Tensor | None]:
    """Return dx, dweight, dbias and dgate, None for those not needed."""
    if not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
        return _of_kernels(dy, x, gate, weight, bias, definition, need, statistics)
    results = derivatives.gradients(dy, x, gate, weight, bias, definition)
    types = (x.dtype, *(arguments.type_of(each) for each in (weight, bias)), x.dtype)
    return [
        result.to(dtype) if needed else None
        for result, dtype, needed in zip(results, types, need, strict=True)
    ]


def _of_kernels(
    dy: Tensor,
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    need: Sequence[bool],
    statistics: Sequence[Tensor],
) -> list[Tensor | None]:
    """Return the same of the kernels."""

    def call(
        weight: Tensor | None, bias: Tensor | None, need: Sequence[bool]
    ) -> list[Tensor | None]:
        if not any(need):
            return [None] * 4
        given = (dy, x, weight, bias, definition)
        if gpu.may_bypass_dispatcher(dy, x, gate, weight, bias):
            wanted = need if definition.centered else (*need[:2], need[3])
            results = gpu.backward(*given, wanted, statistics, gate=gate)
        else:
            results = operators.backward(*given, need, statistics, gate=gate)
        dx, dweight, *dbias, dgate = results
        every = (dx, dweight, dbias[0] if dbias else None, dgate)
        return [each if needed else None for each, needed in zip(every, need, strict=True)]

    if weight is None or bias is None or weight.shape == bias.shape:
        return call(weight, bias, need)
    # dgate needs both, along the axes of both; the others are sums over the rows that share each.
    dx, _, _, dgate = call(*arguments.repeated(weight, bias), (need[0], False, False, need[3]))
    dweight = call(weight, None, (False, need[1], False, False))[1]
    dbias = call(None, bias, (False, False, need[2], False))[2]
    return [dx, dweight, dbias, dgate]


def composed(
    x: Tensor,
    gate: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    axis: spec.Axis | None,
    *,
    centered: bool,
    zero_centered_weight: bool,
    silu: bool,
    norm_before_gate: bool,
) -> Tensor:
    """Return y in PyTorch's own operations, for whoever knows these and not ours."""
    compute = arguments.compute_type(x.dtype)
    activate = torch.nn.functional.silu if silu else torch.sigmoid
    act, u = activate(gate.to(compute)), x.to(compute)
    if not norm_before_gate:
        u = u * act
    weight, bias = (None if each is None else each.to(compute) for each in (weight, bias))
    n = fallback.call(
        *(u, normalized_shape, weight, bias, eps, axis),
        centered=centered,
        zero_centered_weight=zero_centered_weight,
    )
    return (n * act if norm_before_gate else n).to(x.dtype)
