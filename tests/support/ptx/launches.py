"""Launches of the GPU kernels on CPU tensors: compiled for sm_90, and their PTX emulated.

Compiling takes nearly all of the time, so Triton's assembler is left out.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from machine_code import MODULES, compiled_launch
from triton import knobs

from layernorm.torch.gpu.launch import without_none
from ptx.threads import kernel_of

_compiled: dict[Any, tuple[str, int]] = {}


def emulate_launches() -> None:
    """Let this process emulate the launches of `layernorm.torch.gpu`."""
    for module in MODULES:
        module.launch = launch


def launch(
    kernel: Any,
    programs: int,
    arguments: Iterable[torch.Tensor | int | None],
    warps: int,
    **constants: Any,
) -> None:
    """Do what `layernorm.torch.gpu.launch.launch` does."""
    if programs == 0:
        return
    given = without_none(arguments)
    ptx, shared = compiled(kernel, given, warps, constants)
    kernel_of(ptx).launch(programs, warps, shared, given)


def compiled(
    kernel: Any, given: Sequence[torch.Tensor | int], warps: int, constants: dict[str, Any]
) -> tuple[str, int]:
    """Return the PTX of a launch, and its bytes of shared memory."""
    types = tuple(each.dtype for each in given if isinstance(each, torch.Tensor))
    key = (kernel.__name__, types, warps, *constants.items())
    if key not in _compiled:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(knobs.runtime, "add_stages_inspection_hook", _leave_out_the_assembler)
            # Triton 3.6 does not tell these results from assembled ones.
            patch.setattr(knobs.cache, "dir", f"{knobs.cache.dir}-of-ptx")
            found = compiled_launch(kernel, given, constants, warps)
        _compiled[key] = found.asm["ptx"], found.metadata.shared
    return _compiled[key]


def _leave_out_the_assembler(*arguments: Any) -> tuple[str, str] | None:
    """Replace the last stage; without arguments give a key for Triton's cache."""
    if not arguments:
        return "ptx alone", "ptx alone"
    _, stages, *_ = arguments
    stages["cubin"] = lambda source, metadata: b""
    return None
