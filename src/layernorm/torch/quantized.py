"""Norms in 8 bits: q = y / scale, rounded and saturated."""

from collections.abc import Sequence
from typing import Any, SupportsFloat, overload

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from layernorm import spec
from layernorm.torch import arguments, fallback, operators, sharding
from layernorm.torch.arguments import Axes, Definition
from layernorm.torch.gpu import operators as gpu


@overload
def quantized_layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    dtype: torch.dtype | str = torch.int8,
    scale: None = None,
    axis: spec.Axis | None = None,
    zero_centered_weight: bool = False,
) -> tuple[Tensor, Tensor]: ...
@overload
def quantized_layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    dtype: torch.dtype | str = torch.int8,
    scale: SupportsFloat | Tensor,
    axis: spec.Axis | None = None,
    zero_centered_weight: bool = False,
) -> Tensor: ...
def quantized_layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    dtype: torch.dtype | str = torch.int8,
    scale: SupportsFloat | Tensor | None = None,
    axis: spec.Axis | None = None,
    zero_centered_weight: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the layer norm in 8 bits, and the scale of each row: y is about q * scale.

    q = y / scale, rounded to nearest, ties to even, and saturated, where y is what `layer_norm`
    returns, in the input's type. The scale of a row is max|y| / m, where m is the largest number of
    `dtype`, but at least the smallest normal number of its own type. A NaN makes the row's scale
    NaN; it becomes 0 in int8, NaN in float8.

    Args:
        input, normalized_shape, weight, bias, eps, axis, zero_centered_weight: as in `layer_norm`.
        dtype: of q: torch.int8 (m = 127), float8_e4m3fn (448) or float8_e5m2 (57344).
        scale: for all rows: a positive number, or a tensor with one, whose value is not checked.
            Then int8 goes from -128 to 127.
    Returns: (q, scales), contiguous: q of the input's shape; scales float32 (float64 for float64),
        of the input's shape with the normalized axes kept as size 1. With a given scale q alone.
        Neither has a gradient.
    Raises: RuntimeError for shapes and types, TypeError for `dtype`, ValueError and TypeError for
        `scale`.
    """
    sizes = arguments.sizes_of(normalized_shape)
    return quantized_norm(
        *(input, sizes, weight, bias, eps, axis, dtype, scale),
        centered=True,
        zero_centered_weight=zero_centered_weight,
    )


@overload
def quantized_rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    dtype: torch.dtype | str = torch.int8,
    scale: None = None,
    axis: spec.Axis | None = None,
    zero_centered_weight: bool = False,
) -> tuple[Tensor, Tensor]: ...
@overload
def quantized_rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    dtype: torch.dtype | str = torch.int8,
    scale: SupportsFloat | Tensor,
    axis: spec.Axis | None = None,
    zero_centered_weight: bool = False,
) -> Tensor: ...
def quantized_rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    dtype: torch.dtype | str = torch.int8,
    scale: SupportsFloat | Tensor | None = None,
    axis: spec.Axis | None = None,
    zero_centered_weight: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the RMS norm in 8 bits, and the scale of each row, as `quantized_layer_norm`.

    Args: as in `rms_norm` and `quantized_layer_norm`.
    Returns: (q, scales), or with a given scale q.
    Raises: as `quantized_layer_norm` does.
    """
    sizes = arguments.sizes_of(normalized_shape)
    return quantized_norm(
        *(input, sizes, weight, None, eps, axis, dtype, scale),
        centered=False,
        zero_centered_weight=zero_centered_weight,
    )


def quantized_norm(
    x: Tensor,
    sizes: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    axis: spec.Axis | None,
    dtype: torch.dtype | str,
    scale: SupportsFloat | Tensor | None,
    *,
    centered: bool,
    zero_centered_weight: bool,
) -> Any:
    """Return (q, scales), or with a scale q."""
    named = arguments.type_name(dtype) if isinstance(dtype, torch.dtype) else str(dtype)
    name = spec.check_quantized_type(named)
    if isinstance(scale, Tensor):
        if scale.numel() != 1:
            spec.check_scale(scale)  # which raises
    elif scale is not None:
        scale = spec.check_scale(scale, arguments.type_name(x.dtype))
    x, weight, bias = (None if each is None else each.detach() for each in (x, weight, bias))
    sharding.prepare()
    is_seen = has_torch_function_variadic(x, weight, bias)
    if is_seen or not fallback.serves(x, sizes, weight, bias, eps, centered=centered):
        y = fallback.call(
            *(x, sizes, weight, bias, eps, axis),
            centered=centered,
            zero_centered_weight=zero_centered_weight,
        )
        q, scales = composed(y, arguments.named_axes(x, sizes, axis), name, scale)
    else:
        x, weight, bias = gpu.as_under_autocast(x, weight, bias, centered=centered)
        axes = arguments.axes_of(x, sizes, axis)
        weight, bias = arguments.take_parameters(x, axes, weight, bias)
        if eps is None:
            eps = arguments.machine_epsilon(x.dtype)
        definition = Definition(axes, float(eps), centered, bool(zero_centered_weight))
        compute = arguments.compute_type(x.dtype)
        if isinstance(scale, Tensor):
            scale = scale.detach().to(x.device, compute).reshape(())
        elif scale is not None:
            scale = torch.full((), scale, dtype=compute, device=x.device)
        q, scales = operators.quantized(x, weight, bias, definition, name, scale)
    return (q, scales) if scale is None else q


def composed(
    y: Tensor, axes: Axes, name: str, scale: float | Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return q and the scales in PyTorch's own operations, for whoever knows these and not ours.

    PyTorch rounds float64 to float8 twice, through float32.
    """
    y = y.to(arguments.compute_type(y.dtype))
    most = spec.QUANTIZED_TYPES[name]
    if scale is None:
        largest = y.abs().amax(axes, keepdim=True)
        scales = (largest / most).clamp(min=torch.finfo(y.dtype).smallest_normal)
    else:
        scales = torch.as_tensor(scale, dtype=y.dtype, device=y.device).reshape(())
    quotient = y / scales
    if name == "int8":
        return quotient.nan_to_num(nan=0).round().clamp(-128, 127).to(torch.int8), scales
    return quotient.clamp(-most, most).to(getattr(torch, name)), scales
