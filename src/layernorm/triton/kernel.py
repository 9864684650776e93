"""What makes a function a kernel: constants and types alone decide what is compiled."""

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl


def kernel(function: Callable[..., None]) -> Any:
    """Let Triton compile `function` once for its `tl.constexpr` arguments and the others' types.

    By itself Triton also looks at the numbers and addresses that a launch is given, and compiles
    anew where one is 1 or a multiple of 16: for another batch, slice or alignment, and then in
    another order of summation.
    """
    arguments = inspect.signature(function).parameters.values()
    names = [each.name for each in arguments if each.annotation is not tl.constexpr]
    return triton.jit(function, do_not_specialize=names, do_not_specialize_on_alignment=names)
