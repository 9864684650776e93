"""The decorator of kernels: what is compiled depends on constants and types alone."""

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl


def kernel(function: Callable[..., None]) -> Any:
    """Let Triton compile `function` once for its `tl.constexpr` arguments and the others' types.

    By default Triton also specializes on integers that are 1 and on integers and addresses that are
    multiples of 16. Another batch size, slice or alignment would then compile anew, and could sum
    in another order.
    """
    arguments = inspect.signature(function).parameters.values()
    names = [each.name for each in arguments if each.annotation is not tl.constexpr]
    return triton.jit(function, do_not_specialize=names, do_not_specialize_on_alignment=names)
