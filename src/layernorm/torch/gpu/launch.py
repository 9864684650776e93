"""Launches Triton kernels: through Triton the first time, then directly."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Compiled kernels by kernel, device, types and constants. A kernel's other arguments, integers and
# addresses, do not affect what is compiled.
_compiled: dict[Any, Any] = {}


def launch(
    kernel: Any,
    programs: int,
    arguments: tuple[Tensor | int | None, ...],
    warps: int,
    **constants: Any,
) -> None:
    """Run `programs` programs of the kernel on the current device and stream.

    Args:
        kernel: a function of `layernorm.triton`.
        programs: the number of programs; 0 launches nothing.
        arguments: tensors and ints, in the kernel's order; None for tensors that the constants
            make the kernel ignore.
        warps: the number of warps of each program.
        constants: the rest of the kernel's arguments, in the kernel's order.

    Raises: RuntimeError for the first launch of a kernel while a CUDA graph is captured.
    """
    if programs == 0:
        return
    tensors_and_ints = without_none(arguments)
    types = tuple(given.dtype for given in tensors_and_ints if isinstance(given, Tensor))
    first = tensors_and_ints[0]
    device = first.device.index if isinstance(first, Tensor) else None
    key = (kernel, device, types, warps, *constants.values())
    compiled = _compiled.get(key)
    if compiled is not None:
        compiled[programs, 1, 1](*tensors_and_ints, *constants.values())
        return
    if device is not None and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "layernorm: the first call with these sizes, types and options was made while a CUDA "
            "graph is captured, where no kernel can be loaded: make the call once before"
        )
    # Without fusion: fused multiply-adds are only those that the kernels call by name.
    compiled = kernel[programs, 1, 1](
        *tensors_and_ints, **constants, num_warps=warps, enable_fp_fusion=False
    )
    if compiled is not None:  # the interpreter compiles nothing
        _compiled[key] = compiled


def without_none(arguments: Iterable[Tensor | int | None]) -> list[Tensor | int]:
    """Put a tensor in the place of each None: a pointer, though the kernel ignores it."""
    arguments = tuple(arguments)
    some_tensor = next(each for each in arguments if isinstance(each, Tensor))
    return [some_tensor if each is None else each for each in arguments]


@cache
def multiprocessors(device: torch.device) -> int:
    """Return the number of the device's multiprocessors; 2 for the CPU, where tests interpret."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
