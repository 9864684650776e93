"""Triton's interpreter, made to round to bfloat16 as a GPU does, and made faster."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

# Whether what Triton's compiler makes of the kernels is emulated on the CPU, `ptx/launches.py`.
EMULATED = os.environ.get("LAYERNORM_EMULATE_PTX") == "1"
# Whether kernels run on the CPU, slowly, one way or the other.
INTERPRETED = EMULATED or os.environ.get("TRITON_INTERPRET") == "1"


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
    _remember_types()


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

    @functools.cache
    def uses(function):
        values = function.__globals__.values()
        return any(value is tl for value in values), any(value is tl.core for value in values)

    def patch_once(function):
        key = uses(function)
        if key in patched:
            return None  # a function's call ignores it
        patched.add(key)
        return patch(function)

    def launch_and_patch(executor, *arguments, **constants):
        patched.clear()
        return launch(executor, *arguments, **constants)

    interpreter._patch_lang = patch_once
    interpreter.GridExecutor.__call__ = launch_and_patch


def _remember_types() -> None:
    """Compute what follows from a type once for each type, not for each operation.

    Types of equal shapes then share one shape, so that `is` tells whether shapes are equal.
    """
    import triton.language as tl
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    init_block, init_tensor = tl.block_type.__init__, tl.tensor.__init__
    equal, broadcast = tl.dtype.__eq__, TritonSemantic.broadcast_impl_value
    array_type = interpreter._get_np_dtype
    blocks: dict[Any, dict[str, Any]] = {}
    tensors: dict[Any, dict[str, Any]] = {}
    shapes: dict[Any, Any] = {}
    array_types: dict[str, Any] = {}

    def init_block_once(self, element_ty, shape):
        sizes = tuple(each.value if isinstance(each, tl.constexpr) else each for each in shape)
        key = element_ty.name, sizes
        if key not in blocks:
            init_block(self, element_ty, shape)
            self.shape = shapes.setdefault(sizes, self.shape)
            blocks[key] = vars(self)
        self.__dict__ = dict(blocks[key])

    def init_tensor_once(self, handle, type):
        key = type.name
        if key not in tensors:
            init_tensor(self, handle, type)
            tensors[key] = {name: each for name, each in vars(self).items() if name != "handle"}
        self.__dict__ = {**tensors[key], "handle": handle}

    def is_equal(self, other):
        return self is other or equal(self, other)

    def broadcast_unless_equal(self, lhs, rhs):
        one, other = lhs.type, rhs.type
        if one.is_block() and other.is_block() and one.shape is other.shape:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    def array_type_once(type):
        name = type.scalar.name
        if name not in array_types:
            array_types[name] = array_type(type)
        return array_types[name]

    tl.block_type.__init__, tl.tensor.__init__ = init_block_once, init_tensor_once
    tl.dtype.__eq__, TritonSemantic.broadcast_impl_value = is_equal, broadcast_unless_equal
    interpreter._get_np_dtype = array_type_once
