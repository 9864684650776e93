"""Layer norm and RMS norm of PyTorch tensors."""

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.compiler import is_dynamo_compiling
from torch.overrides import handle_torch_function, has_torch_function_variadic

from layernorm import spec
from layernorm._native import torch_is_unwatched, torch_try_forward
from layernorm.torch import arguments, fallback, operators, sharding
from layernorm.torch.arguments import Definition
from layernorm.torch.autograd import (
    Norm,
    apply,
    record_fast_path,
    record_fast_path_of_sum,
    requires_gradient,
)
from layernorm.torch.fallback import is_overridden
from layernorm.torch.gate import GatedNorm, composed, record_fast_path_of_gate
from layernorm.torch.gpu import operators as gpu

_ORDINARY = (Tensor, torch.nn.Parameter, type(None))


@overload
def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: None = None,
    gate: Tensor | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis | None = None,
    zero_centered_weight: bool = False,
) -> Tensor: ...
@overload
def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor,
    gate: Tensor | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis | None = None,
    zero_centered_weight: bool = False,
) -> tuple[Tensor, Tensor]: ...
def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis | None = None,
    zero_centered_weight: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalize `input` to zero mean and unit variance, then scale and shift.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with the biased variance. A replacement for
    `torch.nn.functional.layer_norm`, with the same results but smaller rounding errors.

    Args:
        input: x, a tensor of float16, bfloat16, float32 or float64, of any strides, on the
            CPU or (with Triton) a GPU. PyTorch's own function serves other types and devices.
        normalized_shape: the sizes of x's last axes, or of those that `axis` names.
        weight, bias: tensors of the normalized shape, or None. Or of a shape that broadcasts
            against x, with the normalized sizes: adaptive layer norm is `weight=scale[:, None],
            bias=shift[:, None], zero_centered_weight=True`. Of x's type, or float32 for a 16-bit
            x.
        eps: added to the variance, in units of x squared.
        residual: a tensor of x's shape and type to add first: y is the norm of x + residual. Or
            float32 for a 16-bit x: a stream that is kept in float32, as is total then.
        gate: a tensor of x's shape and type to multiply y by, activated.
        activation: of the gate z: "silu", z * sigmoid(z), or "sigmoid", 1 / (1 + exp(-z)).
        norm_before_gate: y = norm(x) * activation(gate); if false, norm(x * activation(gate)).
        axis: the normalized axes, an int or ints, if they are not the last: axis=1 for channels
            first. Neither that nor channels_last memory requires a copy.
        zero_centered_weight: multiply by 1 + weight.
    Returns: y, with x's shape and type; contiguous, like PyTorch's, or with `axis` in x's memory
        format. With a residual (y, total): total is x + residual, rounded to the residual's type,
        and y the norm of that.
    Raises: RuntimeError for shapes and types, IndexError if an axis is out of range,
        TypeError if it is not an int.
    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    if gate is not None:
        return gated_norm(
            *(input, residual, gate, normalized_shape, weight, bias, eps, axis),
            centered=True,
            zero_centered_weight=zero_centered_weight,
            activation=activation,
            norm_before_gate=norm_before_gate,
        )
    if residual is not None:
        return norm_of_sum(
            *(input, residual, normalized_shape, weight, bias, eps, axis),
            centered=True,
            zero_centered_weight=zero_centered_weight,
        )
    if axis is None and not is_dynamo_compiling():
        y = torch_try_forward(
            input, weight, bias, normalized_shape, eps, True, zero_centered_weight
        )
        if y is not None:
            return record_fast_path(input, weight, bias, y) if type(y) is tuple else y
    if has_torch_function_variadic(input, weight, bias):
        if axis is None and not zero_centered_weight and is_overridden(input, weight, bias):
            shape = arguments.sizes_of(normalized_shape)
            return fallback.call(input, shape, weight, bias, eps, centered=True)
        return handle_torch_function(
            layer_norm,
            (input, weight, bias),
            input,
            normalized_shape,
            weight=weight,
            bias=bias,
            eps=eps,
            axis=axis,
            zero_centered_weight=zero_centered_weight,
        )
    return norm(
        input,
        normalized_shape,
        weight,
        bias,
        eps,
        axis,
        centered=True,
        zero_centered_weight=zero_centered_weight,
    )


@overload
def rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: None = None,
    gate: Tensor | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis | None = None,
    zero_centered_weight: bool = False,
) -> Tensor: ...
@overload
def rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: Tensor,
    gate: Tensor | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis | None = None,
    zero_centered_weight: bool = False,
) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis | None = None,
    zero_centered_weight: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Divide `input` by its root mean square, then scale.

    y = x / sqrt(mean(x**2) + eps) * weight. A replacement for `torch.nn.functional.rms_norm`.

    Args:
        input, normalized_shape, weight, residual, gate, activation, norm_before_gate, axis,
            zero_centered_weight: as in `layer_norm`.
        eps: added to the mean square, in units of x squared. None means the machine epsilon of
            float32, or of float64 for a float64 x.
    Returns: y, or (y, total), as `layer_norm` does, but of an x in channels_last memory in that
        memory too.
    Raises: as `layer_norm` does.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    if gate is not None:
        return gated_norm(
            *(input, residual, gate, normalized_shape, weight, None, eps, axis),
            centered=False,
            zero_centered_weight=zero_centered_weight,
            activation=activation,
            norm_before_gate=norm_before_gate,
        )
    if residual is not None:
        return norm_of_sum(
            *(input, residual, normalized_shape, weight, None, eps, axis),
            centered=False,
            zero_centered_weight=zero_centered_weight,
        )
    if axis is None and not is_dynamo_compiling():
        y = torch_try_forward(
            input, weight, None, normalized_shape, eps, False, zero_centered_weight
        )
        if y is not None and not (type(y) is tuple and input.is_inference()):
            return record_fast_path(input, weight, None, y) if type(y) is tuple else y
    if has_torch_function_variadic(input, weight):
        if axis is None and not zero_centered_weight and is_overridden(input, weight):
            shape = arguments.sizes_of(normalized_shape)
            return fallback.call(input, shape, weight, None, eps, centered=False)
        return handle_torch_function(
            rms_norm,
            (input, weight),
            input,
            normalized_shape,
            weight=weight,
            eps=eps,
            axis=axis,
            zero_centered_weight=zero_centered_weight,
        )
    return norm(
        input,
        normalized_shape,
        weight,
        None,
        eps,
        axis,
        centered=False,
        zero_centered_weight=zero_centered_weight,
    )


def norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    axis: spec.Axis | None,
    *,
    centered: bool,
    zero_centered_weight: bool = False,
) -> Tensor:
    """Return y on the general path: check the arguments, then call the operators."""
    sizes = arguments.sizes_of(normalized_shape)
    sharding.prepare()
    if not fallback.serves(x, sizes, weight, bias, eps, centered=centered):
        return fallback.call(
            x,
            sizes,
            weight,
            bias,
            eps,
            axis,
            centered=centered,
            zero_centered_weight=zero_centered_weight,
        )
    return _run(x, None, sizes, weight, bias, eps, axis, centered, zero_centered_weight)[0]


def norm_of_sum(
    x: Tensor,
    residual: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    axis: spec.Axis | None,
    *,
    centered: bool,
    zero_centered_weight: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return y and total = x + residual, of which it is the norm.

    Who knows PyTorch's operators and not ours sees an addition and then what `layer_norm` and
    `rms_norm` do.
    """
    if axis is None and not is_dynamo_compiling():
        result = torch_try_forward(
            *(x, weight, bias, normalized_shape, eps, centered, zero_centered_weight), residual
        )
        if result is not None:
            return record_sum(x, weight, bias, result, residual)
    if arguments.widens(x, residual):
        wide = residual.dtype
        weight, bias = (
            each.to(wide) if each is not None and each.dtype == x.dtype else each
            for each in (weight, bias)
        )
        y, total = norm_of_sum(
            *(x.to(wide), residual, normalized_shape, weight, bias, eps, axis),
            centered=centered,
            zero_centered_weight=zero_centered_weight,
        )
        return y.to(x.dtype), total
    arguments.check_like(x, "residual", residual)
    sizes = arguments.sizes_of(normalized_shape)
    sharding.prepare()
    is_seen = has_torch_function_variadic(x, residual, weight, bias)
    if is_seen or not (
        fallback.serves(x, sizes, weight, bias, eps, centered=centered)
        and fallback.serves(residual, sizes, None, None, eps, centered=centered)
    ):
        total = x + residual
        function: Any = layer_norm if centered else rms_norm
        parameters = (weight, bias) if centered else (weight,)
        options = {"axis": axis, "zero_centered_weight": zero_centered_weight}
        return function(total, normalized_shape, *parameters, eps, **options), total
    results = _run(x, residual, sizes, weight, bias, eps, axis, centered, zero_centered_weight)
    return results[0], results[1]


def gated_norm(
    x: Tensor,
    residual: Tensor | None,
    gate: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    axis: spec.Axis | None,
    *,
    centered: bool,
    zero_centered_weight: bool = False,
    activation: str = "silu",
    norm_before_gate: bool = True,
) -> Any:
    """Return y of x, or (y, total) of total = x + residual, gated."""
    gating = (spec.check_activation(activation) == "silu", bool(norm_before_gate))
    if residual is None and axis is None and not is_dynamo_compiling():
        y = torch_try_forward(
            *(x, weight, bias, normalized_shape, eps, centered, zero_centered_weight),
            *(None, gate, *gating),
        )
        if y is not None:
            return record_gated(x, weight, bias, y, gate, gating)
    arguments.check_like(x, "gate", gate)
    options: dict[str, Any] = {
        "centered": centered,
        "zero_centered_weight": zero_centered_weight,
        "norm_before_gate": norm_before_gate,
    }
    if residual is not None:
        dtype, wide = x.dtype, residual.dtype if arguments.widens(x, residual) else x.dtype
        x, gate, weight, bias = (
            each.to(wide) if each is not None and each.dtype == dtype else each
            for each in (x, gate, weight, bias)
        )
        arguments.check_like(x, "residual", residual)
        total = x + residual
        rest = (gate, normalized_shape, weight, bias, eps, axis)
        return gated_norm(total, None, *rest, **options, activation=activation).to(dtype), total
    sizes = arguments.sizes_of(normalized_shape)
    sharding.prepare()
    if has_torch_function_variadic(x, gate, weight, bias) or not (
        fallback.serves(x, sizes, weight, bias, eps, centered=centered)
        and fallback.serves(gate, sizes, None, None, eps, centered=centered)
    ):
        return composed(x, gate, sizes, weight, bias, eps, axis, **options, silu=gating[0])
    return _run(
        *(x, None, sizes, weight, bias, eps, axis, centered, zero_centered_weight), gate, gating
    )[0]


def record_gated(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    result: Any,
    gate: Tensor,
    gating: tuple[bool, bool],
) -> Tensor:
    """Return y of a fast path's y or (y, rest), with a node if there is a rest."""
    if type(result) is not tuple:
        return result
    y: Tensor = record_fast_path_of_gate(x, weight, bias, result, gate, gating)
    return y


def record_sum(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, result: Any, residual: Tensor
) -> tuple[Tensor, Tensor]:
    """Return y and total of a fast path's (y, total, rest), with a node if there is a rest."""
    if result[2] is None:
        return result[0], result[1]
    y, total = record_fast_path_of_sum(x, weight, bias, result, residual)
    return y, total


def _run(
    x: Tensor,
    addend: Tensor | None,
    sizes: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    axis: spec.Axis | None,
    centered: bool,
    zero_centered_weight: bool,
    gate: Tensor | None = None,
    gating: tuple[bool, bool] = (True, True),
) -> tuple[Tensor, ...]:
    """Call the operators; return y, with an addend total, and the statistics, if any are saved.

    `gating` ends the definition: whether the gate's activation is silu, and `norm_before_gate`.
    """
    x, weight, bias = gpu.as_under_autocast(x, weight, bias, centered=centered)
    addend, gate = (None if each is None else each.to(x.dtype) for each in (addend, gate))
    axes = arguments.axes_of(x, sizes, axis)
    weight, bias = arguments.take_parameters(x, axes, weight, bias)
    is_compiled = torch.compiler.is_compiling()
    if axis is None:
        memory = torch.contiguous_format if centered else suggest_memory_format(x)
        # Of an x with gaps, such as a part of a fused projection, y is contiguous without a copy.
        has_gaps = not is_compiled and operators.has_gaps(x)
        if not has_gaps or memory is not torch.contiguous_format:
            x = x.contiguous(memory_format=memory)
    if eps is None:
        eps = arguments.machine_epsilon(x.dtype)
    definition = Definition(axes, float(eps), centered, bool(zero_centered_weight), *gating)
    beside = {"addend": addend, "gate": gate}
    if any(each is not None and sharding.splits_rows(each, axes) for each in (x, addend)):
        from layernorm.torch import split_rows  # which imports torch.distributed

        return split_rows.norm(x, addend, gate, weight, bias, definition)
    if is_compiled:  # the compiler must see an operator, which a node of ours would hide
        return operators.forward(x, weight, bias, definition, **beside)
    given = (x, weight, bias, addend, gate)
    if not requires_gradient(*given):
        if gpu.may_bypass_dispatcher(*given):
            parameters = arguments.repeated(weight, bias)
            return gpu.forward(x, *parameters, definition, save=False, **beside)
        is_ordinary = all(type(each) in _ORDINARY for each in given)
        if is_ordinary and torch_is_unwatched():  # no transform, no forward mode: no node is needed
            with torch._C._AutoDispatchBelowAutograd():
                return operators.forward(x, weight, bias, definition, **beside)
    if gate is not None:
        gated: tuple[Tensor, ...] = apply(GatedNorm, x, gate, weight, bias, definition)
        return gated
    results: tuple[Tensor, ...] = apply(Norm, x, weight, bias, definition, addend)
    return results


# TorchScript compiles calls of our functions into PyTorch's operators. Its table knows functions by
# their ids, so its list keeps them, even when this module is reloaded.
for _pair in ((layer_norm, "aten::layer_norm"), (rms_norm, "aten::rms_norm")):
    torch.jit._builtins._builtin_ops.append(_pair)
    torch.jit._builtins._register_builtin(*_pair)
