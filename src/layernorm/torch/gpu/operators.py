"""The operators' GPU kernels, and PyTorch's own layer norm operator run by them.

Triton is imported for the first GPU tensor. Devices are "cuda" for NVIDIA's and for AMD's GPUs.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from layernorm import _native, spec
from layernorm.torch import arguments, operators
from layernorm.torch.arguments import Definition, normalize_axes
from layernorm.torch.signatures import backward_operators, forward_operators
from layernorm.triton import launch_config

# Whether autocast widens PyTorch's own rms_norm, as it does from PyTorch 2.12 on.
WIDENS_RMS_NORM = torch._C._dispatch_has_kernel_for_dispatch_key("aten::rms_norm", "AutocastCUDA")

# Devices on which eager calls may bypass the dispatcher.
BYPASSING_DEVICES = ("cuda",)


def as_under_autocast(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *, centered: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Widen 16-bit tensors where PyTorch's autocast widens those of its own function."""
    if not (x.is_cuda and torch.is_autocast_enabled("cuda")):
        return x, weight, bias
    if not (centered or WIDENS_RMS_NORM):
        return x, weight, bias
    return _widened(x), *(None if each is None else _widened(each) for each in (weight, bias))


def _widened(given: Tensor) -> Tensor:
    return given.float() if given.dtype in (torch.float16, torch.bfloat16) else given


def native_layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, ...]:
    """Run `aten::native_layer_norm`: y, mean and rstd."""
    from layernorm.torch.gpu.forward import forward as launch_forward

    definition = Definition(arguments.axes_of(x, normalized_shape, None), eps)
    _check(x, weight, bias, definition, may_vary=False)
    with _on_device_of(x):
        results = launch_forward(x, weight, bias, definition, contiguous=True)
    return _without_none(results)[:3]


def _without_none(results: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    return tuple(each for each in results if each is not None)


def native_layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    need: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Run `aten::native_layer_norm_backward`: dx, dweight and dbias, None where not needed.

    The operator passes neither eps nor the residual of the mean, which is recomputed.
    """
    from layernorm.torch.gpu.backward import Backward

    definition = Definition(arguments.axes_of(x, normalized_shape, None), eps=0.0)
    _check(x, weight, bias, definition, may_vary=False)
    dtype = operators.parameter_type(x, weight, bias)
    given = (dy, x, weight, dtype, definition, need, (mean, rstd, None))
    with _on_device_of(x):
        return Backward(*given, knows_eps=False, contiguous=True).run()


def _check(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    *,
    may_vary: bool = True,
) -> None:
    if x.dtype not in arguments.TYPES:
        raise RuntimeError(
            f"layernorm: x has type {x.dtype}, expected float16, bfloat16, float32 or float64: "
            "call it with x.float()"
        )
    if not arguments.has_triton():
        raise RuntimeError(
            "layernorm: x is on a GPU, whose kernels need Triton, which is not installed: "
            "pip install 'layernorm[triton]'"
        )
    sizes = [x.shape[axis] for axis in definition.axes]
    _check_parameters(x, sizes, weight, bias, definition, may_vary=may_vary)
    if math.prod(sizes) > launch_config.MOST_COLS:
        raise RuntimeError(
            f"layernorm: rows of x have {math.prod(sizes)} elements, expected at most "
            f"{launch_config.MOST_COLS} on a GPU: normalize x.cpu()"
        )
    arguments.check_devices(x, weight=weight, bias=bias)


def _check_parameters(
    x: Tensor,
    sizes: list[int],
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    *,
    may_vary: bool,
) -> None:
    arguments.take_parameters(x, definition.axes, weight, bias)
    for name, given in (("weight", weight), ("bias", bias)):
        if given is None or list(given.shape) == sizes or (may_vary and given.dim() == x.dim()):
            continue
        raise RuntimeError(
            f"Expected {name} to be of same shape as normalized_shape, but got {name} of shape "
            f"{list(given.shape)} and normalized_shape = {sizes}: pass a {name} of the normalized "
            "shape"
        )
    if weight is not None and bias is not None and weight.shape != bias.shape:
        raise RuntimeError(
            f"layernorm: weight has shape {list(weight.shape)} and bias {list(bias.shape)}, "
            "expected one shape for both: expand one to the other's"
        )


def _check_like(x: Tensor, **others: Tensor | None) -> None:
    for name, given in others.items():
        if given is not None and (given.shape != x.shape or given.dtype != x.dtype):
            raise RuntimeError(
                f"layernorm: {name} has shape {list(given.shape)} and type {given.dtype}, expected "
                f"those of x, {list(x.shape)} and {x.dtype}: pass {name}.to(x.dtype)"
            )
    arguments.check_devices(x, **others)


def _on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device_of(x) if x.is_cuda else nullcontext()


def may_bypass_dispatcher(*tensors: Tensor | None) -> bool:
    """Tell whether an eager call may bypass the dispatcher, half of the time of a small call.

    Not while a mode, a transform or a profiler is active, which must see the operator.
    """
    return (
        all(each is None or _is_ordinary(each) for each in tensors) and _native.torch_is_unwatched()
    )


def _is_ordinary(given: Tensor) -> bool:
    return (
        type(given) in (Tensor, torch.nn.Parameter)
        and given.device.type in BYPASSING_DEVICES
        and not given.is_neg()
        and not given._is_zerotensor()
    )


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    *,
    addend: Tensor | None = None,
    gate: Tensor | None = None,
    save: bool = True,
) -> tuple[Tensor, ...]:
    """Return y, with an addend total, and if `save` the statistics, as `operators.forward` does.

    The operators' GPU kernel; eager calls that bypass the dispatcher call it directly.
    """
    from layernorm.torch.gpu.forward import forward as launch_forward

    _check(x, weight, bias, definition)
    if addend is not None or gate is not None:
        _check_like(x, residual=addend, gate=gate)
    with torch._C._AutoDispatchBelowAutograd(), _on_device_of(x):
        given = (x, weight, bias, definition)
        results = launch_forward(*given, addend=addend, gate=gate, save=save)
    return _without_none(results)


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
    """Return the gradients, dtotal added to dx, with a gate dgate, as `operators.backward` does.

    The operators' GPU kernel; eager calls that bypass the dispatcher call it directly.
    """
    from layernorm.torch.gpu.backward import Backward

    _check(x, weight, bias, definition)
    _check_like(x, dy=dy, dtotal=dtotal, gate=gate)
    count = 3 if definition.centered else 2
    saved = statistics if definition.centered else (None, *statistics, None)
    dtype = operators.parameter_type(x, weight, bias)
    shape = next((each.shape for each in (weight, bias) if each is not None), None)
    with torch._C._AutoDispatchBelowAutograd(), _on_device_of(x):
        wanted = need[:count] if gate is None else (*need[:count], need[-1])
        given = (dy, x, weight, dtype, definition, wanted, saved)
        call = Backward(*given, dtotal=dtotal, gate=gate, bias=bias, parameter_shape=shape)
        gradients = call.run()
        results = *gradients[:count], *gradients[3:]
    return tuple(operators.nothing(x) if each is None else each for each in results)


def quantized(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    definition: Definition,
    scale: Tensor | None,
    place: int,
) -> tuple[Tensor, Tensor]:
    """Return the bytes of q and the scales of the rows; with a given scale no scales.

    Args:
        scale: a tensor of one element of the compute type, or None.
        place: that of q's type in `spec.QUANTIZED_TYPES`.
    """
    from layernorm.torch.gpu.quantized import quantized as launch_quantized

    _check(x, weight, bias, definition)
    arguments.check_devices(x, scale=scale)
    compute = arguments.compute_type(x.dtype)
    if scale is not None and (scale.numel() != 1 or scale.dtype != compute):
        raise RuntimeError(
            f"layernorm: scale has shape {list(scale.shape)} and type {scale.dtype}, expected one "
            f"element of type {compute}: pass one number, scale.to({compute})"
        )
    with torch._C._AutoDispatchBelowAutograd(), _on_device_of(x):
        name = list(spec.QUANTIZED_TYPES)[place]
        q, scales = launch_quantized(x, weight, bias, definition, name, scale)
    return q, operators.nothing(x) if scales is None else scales


def quantized_layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    axis: Sequence[int],
    eps: float,
    zero_centered_weight: bool,
    quantized_type: int,
) -> tuple[Tensor, Tensor]:
    """Run `layernorm::quantized_layer_norm`."""
    definition = Definition(normalize_axes(axis, x.dim()), eps, True, zero_centered_weight)
    return quantized(x, weight, bias, definition, scale, quantized_type)


def quantized_rms_norm(
    x: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    axis: Sequence[int],
    eps: float,
    zero_centered_weight: bool,
    quantized_type: int,
) -> tuple[Tensor, Tensor]:
    """Run `layernorm::quantized_rms_norm`."""
    definition = Definition(normalize_axes(axis, x.dim()), eps, False, zero_centered_weight)
    return quantized(x, weight, None, definition, scale, quantized_type)


OPERATORS = {
    **forward_operators(forward),
    **backward_operators(backward),
    "quantized_layer_norm": quantized_layer_norm,
    "quantized_rms_norm": quantized_rms_norm,
}
_ATEN = {
    "native_layer_norm": native_layer_norm,
    "native_layer_norm_backward": native_layer_norm_backward,
}


def implement(namespace: str, device: str) -> torch.library.Library:
    """Register the kernels of `layernorm` or `aten` for a device; the result keeps them there."""
    library = torch.library.Library(namespace, "IMPL")
    for name, function in (OPERATORS if namespace == "layernorm" else _ATEN).items():
        library.impl(name, function, device.upper())
    return library


_library = implement("layernorm", "cuda")
_override: torch.library.Library | None = None


def override_aten(active: bool) -> None:
    """Run PyTorch's own operator on GPUs with our kernels, or with its own again."""
    global _override
    if active and _override is None and torch.cuda.is_available() and arguments.has_triton():
        _override = implement("aten", "cuda")
    elif not active and _override is not None:
        _override._destroy()
        _override = None
