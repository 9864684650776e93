"""What a call computes, and its checks, with PyTorch's exception types and wording."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from layernorm import spec

_NAMES = {getattr(torch, name): name for name in spec.TYPES}
_COMPUTE_TYPES = {dtype: getattr(torch, spec.compute_type(name)) for dtype, name in _NAMES.items()}

TYPES = tuple(_NAMES)

_MOST_AXES = 64  # what our kernels take

# Ascending and negative, so that they stay right when a batch axis is put in front.
Axes = tuple[int, ...]


@dataclass(frozen=True)
class Definition:
    """What a call computes, apart from its tensors. Not a tuple, because functorch flattens tuples.

    Attributes:
        axes: the normalized axes.
        eps: as in `layer_norm`.
        centered: True for layer norm, False for RMS norm.
        zero_centered_weight: as in `rms_norm`.
        silu: the activation of the gate, if there is one: silu, or sigmoid.
        norm_before_gate: as in `layer_norm`.
    """

    axes: Axes
    eps: float
    centered: bool = True
    zero_centered_weight: bool = False
    silu: bool = True
    norm_before_gate: bool = True


def compute_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type of the statistics of an x of type `dtype`."""
    return _COMPUTE_TYPES.get(dtype, torch.float32)


def machine_epsilon(dtype: torch.dtype) -> float:
    """Return the value of eps=None for an x of type `dtype`: that of the compute type."""
    return torch.finfo(compute_type(dtype)).eps


def type_of(given: Tensor | None) -> torch.dtype | None:
    """Return a tensor's type; None for None."""
    return None if given is None else given.dtype


def type_name(dtype: torch.dtype) -> str:
    """Name the type as `layernorm.spec` does: "float32"."""
    return str(dtype).removeprefix("torch.")


def is_served(
    x: object,
    normalized_shape: object,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    centered: bool,
) -> bool:
    """Tell whether our operators take these arguments.

    PyTorch's own function takes the others, with its own errors for types, devices, layouts and
    kinds of arguments. Its RMS norm takes more pairs of types than ours.
    """
    return (
        isinstance(x, Tensor)
        and isinstance(normalized_shape, list | tuple)
        and all(isinstance(each, int | torch.SymInt) for each in normalized_shape)
        and len(normalized_shape) <= x.dim() <= _MOST_AXES
        and all(given is None or _is_served(given) for given in (x, weight, bias))
        and all(given is None or given.device == x.device for given in (weight, bias))
        and (centered or weight is None or _is_parameter_type(weight.dtype, x.dtype))
    )


def _is_served(given: object) -> bool:
    return (
        isinstance(given, Tensor)
        and (given.device.type in ("cpu", "meta") or (given.device.type == "cuda" and has_triton()))
        and given.layout is torch.strided
        and not given.is_nested
        and given.dtype in TYPES
    )


def _is_parameter_type(given: torch.dtype, x_type: torch.dtype) -> bool:
    return given == x_type or type_name(given) in spec.parameter_types(type_name(x_type))


def sizes_of(normalized_shape: Any) -> Any:
    """Return a list of ints for an int, or for a list or tuple of integers of any class."""
    if isinstance(normalized_shape, Integral):
        normalized_shape = [normalized_shape]
    if isinstance(normalized_shape, list | tuple):
        return [_as_int(each) for each in normalized_shape]
    return normalized_shape


def _as_int(size: Any) -> Any:
    # The compiler's sizes count as ints, and would be fixed by int().
    return size if isinstance(size, int) or not isinstance(size, Integral) else int(size)


_HAS_TRITON = importlib.util.find_spec("triton") is not None  # the compiler cannot trace this


def has_triton() -> bool:
    """Tell whether Triton, which our kernels for GPUs need, is installed."""
    return _HAS_TRITON


def normalize_axes(axis: spec.Axis, dims: int) -> Axes:
    """Return the axes ascending and negative.

    Raises: IndexError if one is out of range, RuntimeError if there are none or one is repeated,
        TypeError if they are not ints.
    """
    try:
        return tuple(each - dims for each in spec.normalize_axes(axis, dims))
    except ValueError as error:
        kind = IndexError if "out of range" in str(error) else RuntimeError
        raise kind(str(error)) from None


def axes_of(x: Tensor, normalized_shape: Sequence[int], axis: spec.Axis | None) -> Axes:
    """Return the normalized axes, after a check that x has the normalized sizes along them.

    Raises: RuntimeError for sizes, and as `normalize_axes` does.
    """
    if len(normalized_shape) == 0:
        raise RuntimeError(
            "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one "
            "element, but got normalized_shape = []: pass the sizes of the normalized axes"
        )
    axes = named_axes(x, normalized_shape, axis)
    if len(axes) > x.dim() or spec.normalized_shape(x.shape, axes) != tuple(normalized_shape):
        sizes = ", ".join(map(str, normalized_shape))
        expected = f"*, {sizes}" if axis is None else f"{sizes} along axes {axes}"
        raise RuntimeError(
            f"Given normalized_shape={list(normalized_shape)}, expected input with shape "
            f"[{expected}], but got input of size{list(x.shape)}: pass an input or a "
            "normalized_shape that fits, or the axis to normalize"
        )
    return axes


def named_axes(x: Tensor, normalized_shape: Sequence[int], axis: spec.Axis | None) -> Axes:
    """Return the axes that `axis` names, or the last ones; x's sizes are not checked."""
    if axis is None:
        return tuple(range(-len(normalized_shape), 0))
    return normalize_axes(axis, x.dim())


def check_devices(x: Tensor, **others: Tensor | None) -> None:
    """Check that the others, which messages name by their keywords, are on x's device.

    Raises: RuntimeError.
    """
    for name, given in others.items():
        if given is not None and given.device != x.device:
            raise RuntimeError(
                f"layernorm: {name} is on {given.device} and x on {x.device}, expected one device "
                f"for both: pass {name}.to({str(x.device)!r})"
            )


def widens(x: object, residual: object) -> bool:
    """Tell whether x is 16-bit and the residual float32, so that x is to be widened first."""
    return (
        isinstance(x, Tensor)
        and isinstance(residual, Tensor)
        and residual.dtype == torch.float32
        and x.dtype in (torch.float16, torch.bfloat16)
    )


def check_like(x: Tensor, name: str, given: object) -> None:
    """Check that the residual or the gate has x's shape, type and device.

    Raises: TypeError for what is not a tensor, RuntimeError.
    """
    if not isinstance(x, Tensor) or not isinstance(given, Tensor):
        kind = type(given if isinstance(x, Tensor) else x).__name__
        raise TypeError(
            f"the input and {name} must be tensors, but one is of type {kind}: pass tensors of "
            "one shape and type"
        )
    if type(given) is not type(x) and hasattr(given, "device_mesh") != hasattr(x, "device_mesh"):
        raise RuntimeError(
            f"one of {name} and the input is a DTensor and the other is not, but both must agree: "
            "pass torch.distributed.tensor.distribute_tensor(..., mesh, placements)"
        )
    if given.dtype != x.dtype:
        raise RuntimeError(
            f"{name} has type {type_name(given.dtype)}, but the input has type "
            f"{type_name(x.dtype)} and both must agree: pass {name}.to(input.dtype)"
        )
    # A tracer's sizes are tensors, which cannot be compared.
    if not torch.jit.is_tracing() and given.shape != x.shape:
        raise RuntimeError(
            f"{name} has shape {list(given.shape)}, but the input {list(x.shape)} and both "
            f"must agree: pass a {name} of that shape"
        )
    check_devices(x, **{name: given})


def take_parameters(
    x: Tensor, axes: Axes, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Check the parameters' shapes and types; reshape those that have kept axes to all of x's axes.

    Raises: RuntimeError.
    """
    _check_parameter_types(x, weight, bias)
    normalized = spec.normalized_shape(x.shape, axes)
    if all(each is None or tuple(each.shape) == normalized for each in (weight, bias)):
        return weight, bias
    for name, given in (("weight", weight), ("bias", bias)):
        _check_parameter_shape(name, given, x, axes)
    return _aligned(weight, x, axes), _aligned(bias, x, axes)


def _aligned(parameter: Tensor | None, x: Tensor, axes: Axes) -> Tensor | None:
    """Give a parameter all of x's axes: one without the normalized shape is aligned right."""
    if parameter is None:
        return None
    if tuple(parameter.shape) == spec.normalized_shape(x.shape, axes):
        return spread(parameter, x.dim(), axes)
    return parameter.reshape([1] * (x.dim() - parameter.dim()) + list(parameter.shape))


def repeated(weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Repeat parameters that vary along different axes, as the operators need them, along all.

    First they become float32 or wider, so that PyTorch, which sums the gradients of the repeats,
    rounds the sum once.
    """
    if weight is None or bias is None or weight.shape == bias.shape:
        return weight, bias
    dtype = compute_type(weight.dtype)
    weight, bias = torch.broadcast_tensors(weight.to(dtype), bias.to(dtype))
    return weight, bias


def _check_parameter_shape(name: str, given: Tensor | None, x: Tensor, axes: Axes) -> None:
    positive = [axis + x.dim() for axis in axes]
    if given is not None and spec.varying_axes(given.shape, x.shape, positive) is None:
        normalized = list(spec.normalized_shape(x.shape, axes))
        raise RuntimeError(
            f"Expected {name} to be of same shape as normalized_shape, but got {name} of shape "
            f"{list(given.shape)} and normalized_shape = {normalized}: "
            f"pass a {name} of the normalized shape, or one that broadcasts against the input of "
            f"size {list(x.shape)} and has these sizes"
        )


def has_kept_axes(parameter: Tensor | None, axes: Sequence[object]) -> bool:
    """Tell whether a parameter has more axes than the normalized ones."""
    return parameter is not None and parameter.dim() > len(axes)


def spread(parameter: Tensor, dims: int, axes: Axes) -> Tensor:
    """Reshape a parameter so that it has as many axes as x, `dims`, and broadcasts against it."""
    if has_kept_axes(parameter, axes):
        return parameter.reshape([1] * (dims - parameter.dim()) + list(parameter.shape))
    sizes = iter(parameter.shape)
    return parameter.reshape([next(sizes) if each in axes else 1 for each in range(-dims, 0)])


def _check_parameter_types(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    mixed = f"mixed dtype ({x.device.type.upper()})"  # as PyTorch's own error begins
    for name, given in (("weight", weight), ("bias", bias)):
        if given is not None and not _is_parameter_type(given.dtype, x.dtype):
            allowed = spec.parameter_types(type_name(x.dtype))
            raise RuntimeError(
                f"{mixed}: expected {name} of type {' or '.join(allowed)} for an "
                f"input of type {type_name(x.dtype)}, but got {type_name(given.dtype)}: "
                f"pass {name}.to(torch.{allowed[-1]})"
            )
    if weight is not None and bias is not None and weight.dtype != bias.dtype:
        raise RuntimeError(
            f"{mixed}: weight has type {type_name(weight.dtype)} and bias "
            f"{type_name(bias.dtype)}, expected one type for both: pass bias.to(weight.dtype)"
        )
