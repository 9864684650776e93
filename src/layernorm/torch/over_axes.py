"""Layer norm and RMS norm of PyTorch tensors with NumPy's signature: `axis`, and `out`.

`layernorm.layer_norm` and Keras call them. In `layernorm.torch` itself the functions have PyTorch's
own signature, with `normalized_shape`.
"""

from typing import Any, SupportsFloat, overload

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from layernorm import spec
from layernorm._native import torch_try_forward_into, torch_try_forward_over_axes
from layernorm.torch import arguments, functional, quantized
from layernorm.torch.autograd import record_fast_path


@overload
def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: None = None,
    gate: Tensor | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    out: Tensor | None = None,
    zero_centered_weight: bool = False,
) -> Tensor: ...
@overload
def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor,
    gate: Tensor | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    out: Tensor | None = None,
    zero_centered_weight: bool = False,
) -> tuple[Tensor, Tensor]: ...
def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    out: Tensor | None = None,
    zero_centered_weight: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalize `x` over `axis`, as `layernorm.layer_norm` does: y = xhat * weight + bias.

    Args: as in `layernorm.layer_norm`: x, weight, bias, residual, gate, activation,
        norm_before_gate, axis, eps, out, zero_centered_weight.
    Returns: y, or `out` with y in it; with a residual (y, total).
    Raises: RuntimeError for shapes and types, IndexError if an axis is out of range, TypeError for
        an axis that is not an int, ValueError and TypeError for eps.
    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    if gate is not None:
        return _gated_norm(
            *(x, residual, gate, weight, bias, axis, eps, out, True, zero_centered_weight),
            activation,
            norm_before_gate,
        )
    if residual is not None:
        return _norm_of_sum(x, residual, weight, bias, axis, eps, out, True, zero_centered_weight)
    if out is None and not is_dynamo_compiling():
        y = torch_try_forward_over_axes(x, weight, bias, axis, eps, True, zero_centered_weight)
        if y is not None:
            return record_fast_path(x, weight, bias, y) if type(y) is tuple else y
    return _norm(x, weight, bias, axis, eps, out, True, zero_centered_weight)


@overload
def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    residual: None = None,
    gate: Tensor | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    out: Tensor | None = None,
    zero_centered_weight: bool = False,
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    residual: Tensor,
    gate: Tensor | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    out: Tensor | None = None,
    zero_centered_weight: bool = False,
) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    out: Tensor | None = None,
    zero_centered_weight: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Divide `x` by its root mean square, as `layernorm.rms_norm` does: y = xhat * weight.

    Args: as in `layernorm.rms_norm`: x, weight, residual, gate, activation, norm_before_gate, axis,
        eps, out, zero_centered_weight.
    Returns: y, or `out` with y in it; with a residual (y, total).
    Raises: RuntimeError for shapes and types, IndexError if an axis is out of range, TypeError for
        an axis that is not an int, ValueError and TypeError for eps.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    if gate is not None:
        return _gated_norm(
            *(x, residual, gate, weight, None, axis, eps, out, False, zero_centered_weight),
            activation,
            norm_before_gate,
        )
    if residual is not None:
        return _norm_of_sum(x, residual, weight, None, axis, eps, out, False, zero_centered_weight)
    if out is None and not is_dynamo_compiling():
        y = torch_try_forward_over_axes(x, weight, None, axis, eps, False, zero_centered_weight)
        if y is not None and not (type(y) is tuple and x.is_inference()):
            return record_fast_path(x, weight, None, y) if type(y) is tuple else y
    return _norm(x, weight, None, axis, eps, out, False, zero_centered_weight)


def quantized_layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype | str = torch.int8,
    scale: SupportsFloat | Tensor | None = None,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    zero_centered_weight: bool = False,
) -> Any:
    """Return (q, scales), or with a scale q, as `layernorm.torch.quantized_layer_norm` does."""
    return _quantized(x, weight, bias, dtype, scale, axis, eps, True, zero_centered_weight)


def quantized_rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    dtype: torch.dtype | str = torch.int8,
    scale: SupportsFloat | Tensor | None = None,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    zero_centered_weight: bool = False,
) -> Any:
    """Return (q, scales), or with a scale q, as `layernorm.torch.quantized_rms_norm` does."""
    return _quantized(x, weight, None, dtype, scale, axis, eps, False, zero_centered_weight)


def _quantized(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype | str,
    scale: SupportsFloat | Tensor | None,
    axis: spec.Axis,
    eps: SupportsFloat,
    centered: bool,
    zero_centered_weight: bool,
) -> Any:
    axes = arguments.normalize_axes(axis, x.dim())
    sizes = spec.normalized_shape(x.shape, axes)
    return quantized.quantized_norm(
        *(x, list(sizes), weight, bias, spec.check_eps(eps), axes, dtype, scale),
        centered=centered,
        zero_centered_weight=zero_centered_weight,
    )


def _norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    axis: spec.Axis,
    eps: SupportsFloat,
    out: Tensor | None,
    centered: bool,
    zero_centered_weight: bool,
) -> Tensor:
    if (
        out is not None
        and not is_dynamo_compiling()
        and torch_try_forward_into(x, weight, bias, axis, eps, centered, zero_centered_weight, out)
    ):
        if not out.is_inference():
            torch.autograd.graph.increment_version(out)
        return out
    axes = arguments.normalize_axes(axis, x.dim())
    y = functional.norm(
        x,
        spec.normalized_shape(x.shape, axes),
        weight,
        bias,
        spec.check_eps(eps),
        axes,
        centered=centered,
        zero_centered_weight=zero_centered_weight,
    )
    return y if out is None else _copied(y, out)


def _norm_of_sum(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    axis: spec.Axis,
    eps: SupportsFloat,
    out: Tensor | None,
    centered: bool,
    zero_centered_weight: bool,
) -> tuple[Tensor, Tensor]:
    if out is None and not is_dynamo_compiling():
        result = torch_try_forward_over_axes(
            *(x, weight, bias, axis, eps, centered, zero_centered_weight), residual
        )
        if result is not None:
            return functional.record_sum(x, weight, bias, result, residual)
    axes = arguments.normalize_axes(axis, x.dim())
    y, total = functional.norm_of_sum(
        x,
        residual,
        spec.normalized_shape(x.shape, axes),
        weight,
        bias,
        spec.check_eps(eps),
        axes,
        centered=centered,
        zero_centered_weight=zero_centered_weight,
    )
    return y if out is None else _copied(y, out), total


def _gated_norm(
    x: Tensor,
    residual: Tensor | None,
    gate: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    axis: spec.Axis,
    eps: SupportsFloat,
    out: Tensor | None,
    centered: bool,
    zero_centered_weight: bool,
    activation: str,
    norm_before_gate: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    if residual is None and out is None and not is_dynamo_compiling():
        gating = (spec.check_activation(activation) == "silu", bool(norm_before_gate))
        fast = torch_try_forward_over_axes(
            *(x, weight, bias, axis, eps, centered, zero_centered_weight),
            *(None, gate, *gating),
        )
        if fast is not None:
            return functional.record_gated(x, weight, bias, fast, gate, gating)
    axes = arguments.normalize_axes(axis, x.dim())
    sizes = spec.normalized_shape(x.shape, axes)
    result = functional.gated_norm(
        *(x, residual, gate, sizes, weight, bias, spec.check_eps(eps), axes),
        centered=centered,
        zero_centered_weight=zero_centered_weight,
        activation=activation,
        norm_before_gate=norm_before_gate,
    )
    y, *total = result if residual is not None else (result,)
    if out is not None:
        y = _copied(y, out)
    return (y, total[0]) if total else y


def _copied(y: Tensor, out: Tensor) -> Tensor:
    if torch.is_grad_enabled() and (y.requires_grad or out.requires_grad):
        raise RuntimeError(
            "out is given where a gradient is required, which does not go through out: omit out, "
            "or call under torch.no_grad()"
        )
    if out.shape != y.shape or out.dtype != y.dtype:
        raise RuntimeError(
            f"out has shape {tuple(out.shape)} and type {out.dtype}, but y has {tuple(y.shape)} "
            f"and {y.dtype}: pass an out of that shape and type"
        )
    return out.copy_(y)
