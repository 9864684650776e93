"""Launches Triton's kernels: through Triton the first time, past most of it from then on."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

# What was compiled, by kernel, device, types and constants. None of the kernels' numbers and
# addresses decides what is compiled, so this is all that there is to ask.
_compiled: dict[Any, Any] = {}


def launch(
    kernel: Any, programs: int, arguments: tuple[Tensor | int, ...], warps: int, **constants: Any
) -> None:
    """Run `programs` programs of the kernel on the current device and stream.

    Args:
        kernel: a function of `layernorm.triton`.
        programs: how many; none are run for 0.
        arguments: tensors and ints, in the kernel's order.
        warps: of each program.
        constants: the rest of the kernel's arguments, in the kernel's order.

    Raises: RuntimeError for the first launch of a kernel while a CUDA graph is captured.
    """
    if programs == 0:
        return
    device = arguments[0].device.index if isinstance(arguments[0], Tensor) else None
    types = tuple(given.dtype for given in arguments if isinstance(given, Tensor))
    key = (kernel, device, types, warps, *constants.values())
    compiled = _compiled.get(key)
    if compiled is not None:
        compiled[programs, 1, 1](*arguments, *constants.values())
        return
    if device is not None and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "layernorm: the first call with these sizes, types and options was made while a CUDA "
            "graph is captured, where no kernel can be loaded: make the call once before"
        )
    # Without fusion: the kernels say themselves where a multiplication and an addition are one.
    compiled = kernel[programs, 1, 1](
        *arguments, **constants, num_warps=warps, enable_fp_fusion=False
    )
    if compiled is not None:  # the interpreter compiles nothing
        _compiled[key] = compiled


@cache
def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors the device has; 2 for the CPU, where tests interpret."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
