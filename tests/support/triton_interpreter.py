"""Triton's interpreter, with what it lacks: conversion to bfloat16 that rounds to nearest."""

import functools
import os

import ml_dtypes
import numpy as np

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def mend() -> None:
    """Let the interpreter convert between float32 and bfloat16 as a GPU does: it cuts off."""
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
