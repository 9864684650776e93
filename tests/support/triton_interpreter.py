"""Triton's interpreter, made to round to bfloat16 as a GPU does, and made faster."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def every(step: int, values: Sequence[Any]) -> Sequence[Any]:
    """Take every `step`-th value in the interpreter, and all of them on a GPU.

    `step` has no factor in common with the periods of the values, so that each type and kind is
    among those taken.
    """
    return values[::step] if INTERPRETED else values


@functools.cache
def patch_interpreter() -> None:
    """Change the interpreter of this process."""
    _round_to_bfloat16()
    _patch_language_once_a_launch()


def _round_to_bfloat16() -> None:
    """Convert between float32 and bfloat16 with rounding to nearest; the interpreter truncates."""
    import triton.language as tl
    from triton.runtime import interpreter

    original = interpreter._convert_float

    def convert(values, from_type, to_type, rounding_mode):
        if (from_type, to_type) == (tl.float32, tl.bfloat16):
            return values.astype(ml_dtypes.bfloat16).view(np.uint16)
        if (from_type, to_type) == (tl.bfloat16, tl.float32):
            return values.view(ml_dtypes.bfloat16).astype(np.float32)
        return original(values, from_type, to_type, rounding_mode)

    interpreter._convert_float = convert


def _patch_language_once_a_launch() -> None:
    """Skip what takes more than half of the interpreter's time.

    Each launch, and each call of a function within it, replaces the functions of `triton.language`
    by interpreted ones; only the launch puts the originals back. Once a launch is enough.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[tuple[bool, bool]] = set()

    def patch_once(function):
        values = function.__globals__.values()
        key = any(value is tl for value in values), any(value is tl.core for value in values)
        if key in patched:
            return None  # a function's call ignores it
        patched.add(key)
        return patch(function)

    def launch_and_patch(executor, *arguments, **constants):
        patched.clear()
        return launch(executor, *arguments, **constants)

    interpreter._patch_lang = patch_once
    interpreter.GridExecutor.__call__ = launch_and_patch
