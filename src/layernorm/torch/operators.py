"""The operators of the namespace `layernorm`: what PyTorch needs besides their kernels.

    layer_norm, rms_norm                     -> y and the statistics
    layer_norm_backward, rms_norm_backward   -> dx, dweight, dbias; those not needed are empty

The same with `add_` before their names are those of a call with a residual: y is the norm of
total = x + residual, which the forward returns after y, and dtotal is added to dx. With `gated_`
before them they take a gate after x, and the backward returns dgate last.

    quantized_layer_norm, quantized_rms_norm -> q in 8 bits, as int8, and the scales of the rows;
                                                with a given scale no scales: an empty tensor

The compiled module defines the schemas and the CPU kernels (native/bindings/torch/operators.cc).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import _is_non_overlapping_and_dense_or_false as _is_dense

from layernorm import spec
from layernorm.torch import arguments, c_api, derivatives
from layernorm.torch.arguments import Axes, Definition, has_kept_axes, normalize_axes
from layernorm.torch.signatures import backward_operators, forward_operators

assert c_api, "importing it defines the operators"


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    *,
    addend: Tensor | None = None,
    gate: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return y and the statistics; with an addend y, total = x + addend, and the statistics."""
    weight, bias = arguments.repeated(weight, bias)
    options = _options(definition, gate)
    ops = torch.ops.layernorm
    if definition.centered and gate is not None:
        return ops.gated_layer_norm(x, gate, weight, bias, *options)
    if gate is not None:
        return ops.gated_rms_norm(x, gate, weight, *options)
    if definition.centered and addend is not None:
        return ops.add_layer_norm(x, addend, weight, bias, *options)
    if definition.centered:
        return ops.layer_norm(x, weight, bias, *options)
    if addend is not None:
        return ops.add_rms_norm(x, addend, weight, *options)
    return ops.rms_norm(x, weight, *options)


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    need: Sequence[bool],
    statistics: Sequence[Tensor],
    *,
    dtotal: Tensor | None = None,
    gate: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return dx plus dtotal, dweight and (layer norm) dbias; those not needed are empty.

    With a gate `need` has a fourth flag, and dgate is last; of RMS norm too.
    """
    options = _options(definition, gate)
    ops = torch.ops.layernorm
    if gate is not None:
        rows = (dy, x, gate, *statistics)
        if definition.centered:
            return ops.gated_layer_norm_backward(*rows, weight, bias, *options, list(need))
        of_rms_norm = [*need[:2], need[3]]
        return ops.gated_rms_norm_backward(*rows, weight, *options, of_rms_norm)
    added = dtotal is not None
    rows = (dy, dtotal, x, *statistics) if added else (dy, x, *statistics)
    if definition.centered:
        operator = ops.add_layer_norm_backward if added else ops.layer_norm_backward
        return operator(*rows, weight, bias, *options, list(need))
    operator = ops.add_rms_norm_backward if added else ops.rms_norm_backward
    return operator(*rows, weight, *options, list(need[:2]))


def quantized(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    type_name: str,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return q and the scales of the rows; with a scale these are an empty tensor."""
    weight, bias = arguments.repeated(weight, bias)
    options = (*_options(definition, None), list(spec.QUANTIZED_TYPES).index(type_name))
    ops = torch.ops.layernorm
    if definition.centered:
        q, scales = ops.quantized_layer_norm(x, weight, bias, scale, *options)
    else:
        q, scales = ops.quantized_rms_norm(x, weight, scale, *options)
    return q.view(getattr(torch, type_name)), scales


def _options(definition: Definition, gate: Tensor | None) -> tuple[Any, ...]:
    options = (list(definition.axes), definition.eps, definition.zero_centered_weight)
    return options if gate is None else (*options, definition.silu, definition.norm_before_gate)


# ---- shapes, types and strides, for tensors without data


def empty_as(x: Tensor) -> Tensor:
    """Allocate y or dx: with x's strides if x is dense, else contiguous."""
    if x.is_contiguous() or x.numel() == 0 or not _is_dense(x.shape, x.stride()):
        return x.new_empty(x.shape)
    return x.new_empty_strided(x.shape, x.stride())


def has_gaps(x: Tensor) -> bool:
    """Tell whether memory between x's elements belongs to others, as in a part of a projection."""
    return not _is_dense(x.shape, x.stride())


def _empty_statistics(x: Tensor, axes: Axes) -> Tensor:
    sizes = [1 if each - x.dim() in axes else size for each, size in enumerate(x.shape)]
    return x.new_empty(sizes, dtype=arguments.compute_type(x.dtype))


def parameter_type(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> torch.dtype:
    """Return the type of dweight and dbias: that of the parameters, or x's if there are none."""
    given = bias if weight is None else weight
    return x.dtype if given is None else given.dtype


def nothing(x: Tensor) -> Tensor:
    """Return the empty tensor that replaces a gradient that is not needed."""
    return x.new_empty(0, dtype=torch.float32)


def _fake_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    *,
    addend: Tensor | None = None,
    gate: Tensor | None = None,
) -> tuple[Tensor, ...]:
    arguments.check_devices(x, residual=addend, gate=gate, weight=weight, bias=bias)
    statistics = 3 if definition.centered else 1
    outputs = [empty_as(x) for _ in range(1 if addend is None else 2)]
    return *outputs, *[_empty_statistics(x, definition.axes) for _ in range(statistics)]


def _fake_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    need: Sequence[bool],
    statistics: Sequence[Tensor],
    *,
    dtotal: Tensor | None = None,
    gate: Tensor | None = None,
) -> tuple[Tensor, ...]:
    arguments.check_devices(x, dy=dy, dtotal=dtotal, gate=gate, weight=weight, bias=bias)
    dx = empty_as(x) if need[0] else nothing(x)
    given = bias if weight is None else weight
    shape = spec.normalized_shape(x.shape, definition.axes) if given is None else given.shape
    dtype = parameter_type(x, weight, bias)
    *of_parameters, need_dgate = need[1:] if gate is not None else (*need[1:], False)
    gradients = [x.new_empty(shape, dtype=dtype) if n else nothing(x) for n in of_parameters]
    if gate is not None:
        gradients.append(empty_as(x) if need_dgate else nothing(x))
    return dx, *gradients


for _name, _fake in (forward_operators(_fake_forward) | backward_operators(_fake_backward)).items():
    torch.library.register_fake(f"layernorm::{_name}")(_fake)


def _fake_quantized(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, scale, axis, _eps, _zero_centered_weight, _type = rest
    scales = _empty_statistics(x, normalize_axes(axis, x.dim())) if scale is None else nothing(x)
    return x.new_empty(x.shape, dtype=torch.int8), scales


for _name in ("quantized_layer_norm", "quantized_rms_norm"):
    torch.library.register_fake(f"layernorm::{_name}")(_fake_quantized)


# ---- gradients of an operator called directly or in a compiled graph


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, axis, eps, zero_centered_weight = inputs
    # y, with a residual total, and the statistics: mean, rstd, residual; for RMS norm rstd alone.
    adds, centered = len(output) in (3, 5), len(output) > 3
    statistics = output[2:] if adds else output[1:]
    ctx.mark_non_differentiable(*statistics)
    x = output[1] if adds else tensors[0]
    parameters = tensors[2:] if adds else tensors[1:]
    ctx.save_for_backward(x, *parameters, *([] if centered else [None]), *statistics)
    ctx.definition = Definition(normalize_axes(axis, x.dim()), eps, centered, zero_centered_weight)


def _forward_gradients(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, *statistics = ctx.saved_tensors
    need = needed(ctx.needs_input_grad, weight, bias)
    gradients = backward(dy, x, weight, bias, ctx.definition, need, statistics)
    return *[g if n else None for g, n in zip(gradients, need, strict=False)], None, None, None


def _add_forward_gradients(
    ctx: Any, dy: Tensor, dtotal: Tensor, *_: Tensor
) -> tuple[Tensor | None, ...]:
    total, weight, bias, *statistics = ctx.saved_tensors
    need_x, need_residual, *need_parameters = ctx.needs_input_grad
    need = needed((need_x or need_residual, *need_parameters), weight, bias)
    gradients = backward(dy, total, weight, bias, ctx.definition, need, statistics, dtotal=dtotal)
    dx, *rest = [g if n else None for g, n in zip(gradients, need, strict=False)]
    return dx if need_x else None, dx if need_residual else None, *rest, None, None, None


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
    *tensors, axis, eps, zero_centered_weight, need = inputs
    centered = len(need) == 3
    ctx.statistics = 3 if centered else 1
    parameters = 2 if centered else 1
    ctx.adds = len(tensors) > 2 + ctx.statistics + parameters  # dy, x: and dtotal
    dy, x, weight = tensors[0], tensors[2 if ctx.adds else 1], tensors[-parameters]
    ctx.save_for_backward(dy, x, weight)
    ctx.definition = Definition(normalize_axes(axis, x.dim()), eps, centered, zero_centered_weight)
    ctx.need = tuple(need)


def _backward_gradients(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    dy, x, weight = ctx.saved_tensors
    of_dy, of_x, of_weight = second_gradients(dy, x, weight, ctx.definition, ctx.need, gradients)
    of_dtotal = [gradients[0] if ctx.need[0] else None] if ctx.adds else []
    rest = 5 if ctx.definition.centered else 4
    return of_dy, *of_dtotal, of_x, *(None,) * ctx.statistics, of_weight, *(None,) * rest


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


for _name, _gradients in (
    *((name, _forward_gradients) for name in ("layer_norm", "rms_norm")),
    *((name, _add_forward_gradients) for name in ("add_layer_norm", "add_rms_norm")),
):
    torch.library.register_autograd(f"layernorm::{_name}", _gradients, setup_context=_save_forward)
    torch.library.register_autograd(
        f"layernorm::{_name}_backward", _backward_gradients, setup_context=_save_backward
    )


def _save_gated(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, gate, *parameters, axis, eps, zero_centered_weight, silu, norm_before_gate = inputs
    centered = len(parameters) == 2
    statistics = output[1:]
    ctx.mark_non_differentiable(*statistics)
    ctx.save_for_backward(x, gate, *parameters, *([] if centered else [None]), *statistics)
    axes = normalize_axes(axis, x.dim())
    ctx.definition = Definition(axes, eps, centered, zero_centered_weight, silu, norm_before_gate)


def _gated_gradients(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, gate, weight, bias, *statistics = ctx.saved_tensors
    need_x, need_gate, *need_parameters = ctx.needs_input_grad
    need = (*needed((need_x, *need_parameters), weight, bias), need_gate)
    gradients = backward(dy, x, weight, bias, ctx.definition, need, statistics, gate=gate)
    returned = need if ctx.definition.centered else (*need[:2], need_gate)
    dx, *of_parameters, dgate = [g if n else None for g, n in zip(gradients, returned, strict=True)]
    return dx, dgate, *of_parameters, *[None] * 5


for _name in ("gated_layer_norm", "gated_rms_norm"):
    torch.library.register_autograd(
        f"layernorm::{_name}", _gated_gradients, setup_context=_save_gated
    )


# ---- batches of calls (vmap)


def _batched(given: Tensor, dim: int | None, size: int) -> Tensor:
    """Return the tensor with the batch axis in front, repeated if it has none."""
    return given.expand(size, *given.shape) if dim is None else given.movedim(dim, 0)


def _sizes_of_one(given: Tensor, dim: int | None) -> list[int]:
    return [size for axis, size in enumerate(given.shape) if axis != dim]


def _varying_with_batch(
    parameters: Sequence[Tensor | None], in_dims: Sequence[Any], size: int, dims: int, axes: Axes
) -> list[Tensor | None]:
    """Return weight and bias for a batch of x's of `dims` axes, each with its own."""

    def varying(given: Tensor, dim: int | None) -> Tensor:
        own = _batched(given, dim, size)
        return own.reshape(size, *arguments.spread(own[0], dims, axes).shape)

    given = zip(parameters, in_dims, strict=True)
    return [each if each is None else varying(each, dim) for each, dim in given]


def _vmap_forward(name: str, parameters: int) -> Callable[..., Any]:
    """Make one call of a batch: of more rows, or with parameters that vary along the batch."""
    count = 2 if name.startswith(("add_", "gated_")) else 1
    scales = 1 if name.startswith("quantized_") else 0

    def rule(info: Any, in_dims: Any, *arguments: Any) -> Any:
        given = list(arguments[count:][:parameters])
        scale = arguments[count + parameters :][:scales]
        axis, *options = arguments[count + parameters + scales :]
        if any(dim is not None for dim in in_dims[count + parameters :][:scales]):
            raise RuntimeError(
                "scale has a batch axis under vmap, expected one scale for all rows: pass a number"
            )
        x, *addend = (
            _batched(each, dim, info.batch_size)
            for each, dim in zip(arguments[:count], in_dims[:count], strict=True)
        )
        axes = normalize_axes(axis, x.dim() - 1)
        dims = in_dims[count : count + parameters]
        each_has_own = any(dim is not None for dim in dims)
        if each_has_own or any(has_kept_axes(each, axes) for each in given):
            size = info.batch_size if each_has_own else 1
            given = _varying_with_batch(given, dims, size, x.dim() - 1, axes)
        results = getattr(torch.ops.layernorm, name)(x, *addend, *given, *scale, axes, *options)
        return results, tuple(0 if each.dim() == x.dim() else None for each in results)

    return rule


def _vmap_backward(name: str, parameters: int) -> Callable[..., Any]:
    """Make one call of a batch, with gradients of the parameters for each of its members."""

    def rule(info: Any, in_dims: Any, *arguments: Any) -> Any:
        at = next(at for at, given in enumerate(arguments) if isinstance(given, list | tuple))
        axis, *options, need = arguments[at:]
        tensors, dims, size = arguments[:at], in_dims[:at], info.batch_size
        rows = [
            _batched(each, dim, size)
            for each, dim in zip(tensors[:-parameters], dims[:-parameters], strict=True)
        ]
        axes = normalize_axes(axis, rows[0].dim() - 1)
        own_dims = dims[-parameters:]
        own = _varying_with_batch(tensors[-parameters:], own_dims, size, rows[0].dim() - 1, axes)
        operator = getattr(torch.ops.layernorm, name)
        results = operator(*rows, *own, axes, *options, need)
        shapes = [
            rows[1].shape if each is None else (size, *_sizes_of_one(each, dim))
            for each, dim in zip((None, *tensors[-parameters:]), (None, *own_dims), strict=True)
        ]
        if name.startswith("gated_"):
            shapes.append(rows[1].shape)
        results = tuple(
            result.reshape(shape) if needed else result.expand(size, 0)
            for result, shape, needed in zip(results, shapes, need, strict=True)
        )
        return results, (0,) * len(results)

    return rule


for _name, _count in (
    *(("layer_norm", 2), ("rms_norm", 1)),
    *(("add_layer_norm", 2), ("add_rms_norm", 1)),
    *(("gated_layer_norm", 2), ("gated_rms_norm", 1)),
):
    torch.library.register_vmap(f"layernorm::{_name}", _vmap_forward(_name, _count))
    torch.library.register_vmap(
        f"layernorm::{_name}_backward", _vmap_backward(f"{_name}_backward", _count)
    )
for _name, _count in (("quantized_layer_norm", 2), ("quantized_rms_norm", 1)):
    torch.library.register_vmap(f"layernorm::{_name}", _vmap_forward(_name, _count))
