"""When PyTorch's own function runs instead of ours, and the call of it.

It runs for arguments that our operators do not take, and for whoever knows PyTorch's operators and
not ours: exporters and tracers, modes, and subclasses of Tensor.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.compiler import is_compiling
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import _CachedTorchDispatchMode, _CachingTorchDispatchMode

from layernorm import spec
from layernorm.torch import arguments, sharding
from layernorm.torch.autograd import requires_gradient

# What a class has for `__torch_function__` if it has none of its own.
_OPEN_FUNCTIONS = (torch._C._disabled_torch_function_impl, Tensor.__torch_function__.__func__)

# Modes that take any operator: tensors without data, and selective checkpoints.
_OPEN_MODES = (FakeTensorMode, _CachingTorchDispatchMode, _CachedTorchDispatchMode)


def serves(
    x: object,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: object,
    *,
    centered: bool,
) -> bool:
    """Tell whether our operators take this call; all others are PyTorch's, with its errors."""
    given = [each for each in (x, weight, bias) if each is not None]
    return (
        arguments.is_served(x, normalized_shape, weight, bias, centered=centered)
        and not isinstance(eps, str)
        and (eps is not None or not centered)
        and all(_is_open(type(each)) for each in given)
        and not _is_watched()
        and not would_save_inference(x, weight, bias)
    )


def would_save_inference(x: Any, weight: Tensor | None, bias: Tensor | None = None) -> bool:
    """Tell whether a backward needs x, an inference tensor, which no node may save.

    PyTorch's RMS norm saves x / rms(x) alone where x needs no gradient. False while compiling.
    """
    return not is_compiling() and x.is_inference() and requires_gradient(x, weight, bias)


def _is_open(kind: Any) -> bool:
    """Tell whether tensors of this class take our operators."""
    if kind.__torch_dispatch__ is Tensor.__torch_dispatch__ or is_compiling():
        return True
    return issubclass(kind, FakeTensor) or sharding.knows(kind)


def _is_watched() -> bool:
    """Tell whether a tracer, mode or transform that knows only PyTorch's operators is active."""
    if is_compiling():
        # `is_exporting()` itself is always true while PyTorch 2.10 compiles. Within `torch.func`
        # the compiler cannot trace a node of ours.
        exports = torch.compiler._is_exporting_flag
        return exports or torch._C._are_functorch_transforms_active()
    if torch.jit.is_tracing():
        return True
    if torch._C._len_torch_dispatch_stack() and not all(
        isinstance(mode, _OPEN_MODES) or sharding.is_counting(mode)
        for mode in _get_current_dispatch_mode_stack()
    ):
        return True
    return torch._C._are_functorch_transforms_active() and any(
        each.key() == TransformType.Functionalize for each in get_interpreter_stack() or ()
    )


def is_overridden(*tensors: Tensor | None) -> bool:
    """Tell whether somebody's `__torch_function__`, which knows PyTorch's function, takes the call.

    Not that of Tensor itself, and not the mode of `torch.set_default_device`.
    """
    if is_compiling():  # the compiler cannot trace what follows
        return True
    modes: list[Any] = _get_current_function_mode_stack()
    if any(not isinstance(mode, DeviceContext) for mode in modes):
        return True
    return any(_function_of(each) not in _OPEN_FUNCTIONS for each in tensors)


def _function_of(given: object) -> object:
    function = getattr(type(given), "__torch_function__", _OPEN_FUNCTIONS[0])
    return getattr(function, "__func__", function)


def call(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    axis: spec.Axis | None = None,
    *,
    centered: bool,
    zero_centered_weight: bool = False,
) -> Tensor:
    """Call PyTorch's own function, which raises its own errors."""
    if any(_has_kept_axes(each, normalized_shape) for each in (weight, bias)):
        return _call_and_scale(
            x, normalized_shape, weight, bias, eps, axis, centered, zero_centered_weight
        )
    is_moved = axis is not None and isinstance(x, Tensor)
    if is_moved:
        # A tracer's sizes are tensors, which cannot be compared.
        find = arguments.named_axes if torch.jit.is_tracing() else arguments.axes_of
        # Not negative, as the older ONNX exporter would write them into the file.
        axes = [each + x.dim() for each in find(x, normalized_shape, axis)]
        last = list(range(x.dim() - len(axes), x.dim()))
        x = x.movedim(axes, last)
    if zero_centered_weight and weight is not None:
        weight = 1 + weight
    if centered:
        y = torch.nn.functional.layer_norm(x, normalized_shape, weight, bias, eps)
    else:
        y = torch.nn.functional.rms_norm(x, normalized_shape, weight, eps)
    return y.movedim(last, axes) if is_moved else y


def _has_kept_axes(parameter: Tensor | None, normalized_shape: Sequence[int]) -> bool:
    """Tell whether it has, unseen by modes and by classes that watch what is asked of them."""
    if not isinstance(parameter, Tensor) or is_compiling():
        return isinstance(parameter, Tensor) and parameter.dim() > len(normalized_shape)
    with torch._C.DisableTorchFunction():
        return parameter.dim() > len(normalized_shape)


def _call_and_scale(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    axis: spec.Axis | None,
    centered: bool,
    zero_centered_weight: bool,
) -> Tensor:
    """Scale and shift in operations of their own: PyTorch's function takes no kept axes."""
    compute = arguments.compute_type(x.dtype)
    y = call(x.to(compute), normalized_shape, None, None, eps, axis, centered=centered)
    axes = arguments.named_axes(x, normalized_shape, axis)
    if weight is not None:
        weight = arguments.spread(weight.to(compute), x.dim(), axes)
        y = y * (1 + weight if zero_centered_weight else weight)
    if bias is not None:
        y = y + arguments.spread(bias.to(compute), x.dim(), axes)
    return y.to(x.dtype)
