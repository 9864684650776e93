"""Users' arrays, and how the kernels see them: aligned, native, as (outer, cols, inner).

Nothing here copies x. forward.py and backward.py do, only if the kernels cannot read it in place.
"""

import functools
import sys
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from layernorm import spec

Array = npt.NDArray[Any]
Description = tuple[np.dtype[Any], spec.Shape]

# Deciding whether two strided views share an element can take exponential time. Beyond this much
# work they count as overlapping.
_OVERLAP_WORK = 100_000


def convert(name: str, type_name: str) -> str:
    """Return the code that converts an array, for the end of an error message."""
    module = "ml_dtypes" if type_name == "bfloat16" else "np"
    return f"np.asarray({name}, {module}.{type_name})"


def reshape(name: str, shape: spec.Shape) -> str:
    """Return the code that reshapes an array, for the end of an error message."""
    return f"np.asarray({name}).reshape({shape})"


def as_array(name: str, value: npt.ArrayLike) -> Array:
    """Return `value` as a base-class ndarray.

    Raises: TypeError for a mask, for fields, and for what NumPy makes no array of numbers of;
        ValueError for a list whose parts differ in length.
    """
    array = value if type(value) is np.ndarray else _converted(name, value)
    if array.dtype.names is not None:
        raise TypeError(
            f"{name} has type {array.dtype.name} with the fields {', '.join(array.dtype.names)}, "
            f"expected numbers: pass {name}[field], or "
            f"numpy.lib.recfunctions.structured_to_unstructured({name}, np.float32)"
        )
    return array


def _converted(name: str, value: Any) -> Array:
    if _holds_a_mask(value):
        raise TypeError(
            f"{name} is or holds a masked array, expected one without a mask: "
            f"pass np.ma.filled({name}, fill_value)"
        )
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        return np.from_dlpack(value)
    try:
        array = np.asarray(value)
    except ValueError as error:
        if not isinstance(value, list | tuple):
            raise
        raise ValueError(
            f"{name} is a {type(value).__name__} that makes no array ({error}): "
            "pass one whose parts have one length"
        ) from error
    if array.dtype == object and not isinstance(value, np.ndarray):
        raise TypeError(
            f"{name} is of type {type(value).__name__}, of which NumPy makes an array of "
            "objects, not of numbers: pass a numpy.ndarray of np.float32, or lists of floats"
        )
    return array


def _holds_a_mask(value: object) -> bool:
    if "numpy.ma" not in sys.modules:
        return False
    if isinstance(value, list | tuple):
        return any(map(_holds_a_mask, value))
    return isinstance(value, np.ma.MaskedArray)


normalized_shape = functools.lru_cache(maxsize=1024)(spec.normalized_shape)
statistics_shape = functools.lru_cache(maxsize=1024)(spec.statistics_shape)


@functools.lru_cache(maxsize=64)
def type_name(dtype: np.dtype[Any]) -> str:
    """Name the type, whatever its byte order: "float32"."""
    return dtype.name


@functools.lru_cache(maxsize=64)
def native_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in this machine's byte order."""
    return np.dtype(dtype.type)


@functools.lru_cache(maxsize=64)
def compute_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type of the statistics of an x of type `dtype`."""
    return np.dtype(spec.compute_type(dtype.name))


def describe(array: Array | None) -> Description | None:
    """Return what the checks need of an array, hashable so that they can be cached."""
    return None if array is None else (array.dtype, array.shape)


@overload
def contiguous(array: Array) -> Array: ...
@overload
def contiguous(array: Array | None) -> Array | None: ...
def contiguous(array: Array | None) -> Array | None:
    """Return a parameter or statistics contiguous, aligned and native, copied only if needed."""
    if array is None:
        return None
    flags = array.flags
    if flags.c_contiguous and flags.aligned and array.dtype.isnative:
        return array
    return np.array(array, dtype=native_type(array.dtype), order="C")


def spread(
    parameter: Array | None, x_shape: spec.Shape, axes: tuple[int, ...], varying: tuple[int, ...]
) -> Array | None:
    """Return a parameter as the kernels take it: with the normalized shape, or if any vary with all
    of x's axes, repeated along those where only another parameter varies.
    """
    if parameter is None:
        return None
    if not varying:
        return contiguous(parameter.reshape(spec.normalized_shape(x_shape, axes)))
    if parameter.shape == spec.normalized_shape(x_shape, axes):
        parameter = parameter.reshape(spec.parameter_shape(x_shape, axes, ()))
    repeated: Array = np.broadcast_to(parameter, spec.parameter_shape(x_shape, axes, varying))
    return contiguous(repeated)


def check_output(name: str, output: Array, x: Array, **others: Array | None) -> None:
    """Check that `out` or `total` can take its result: x's shape and type, and no overlap.

    It may be x or the residual itself, and `out` the gate. Raises: TypeError and ValueError.
    """
    if not isinstance(output, np.ndarray) or _holds_a_mask(output):
        result = "y" if name == "out" else "the sum"
        raise TypeError(
            f"{name} is of type {type(output).__name__}, expected a numpy.ndarray without a mask "
            f"to write {result} into: pass one, or omit {name}"
        )
    output = np.asarray(output)
    may_be = ("x", "residual", "gate") if name == "out" else ("x", "residual")
    overlaps = "itself" if _overlaps_itself(output) else None
    for other_name, other in {"x": x, **others}.items():
        if (
            other is not None
            and _overlap(output, other)
            and not (other_name in may_be and _is_same_memory(output, other))
        ):
            overlaps = other_name
    spec.check_output(
        name,
        output.shape,
        type_name(output.dtype),
        x.shape,
        type_name(x.dtype),
        writeable=output.flags.writeable,
        overlaps=overlaps,
    )


def _is_same_memory(out: Array, x: Array) -> bool:
    return (
        out.ctypes.data == x.ctypes.data
        and out.dtype == x.dtype
        and out.shape == x.shape
        and all(
            mine == theirs or size == 1
            for mine, theirs, size in zip(out.strides, x.strides, x.shape, strict=True)
        )
    )


def _overlap(first: Array, second: Array) -> bool:
    if not np.may_share_memory(first, second):
        return False
    try:
        return np.shares_memory(first, second, max_work=_OVERLAP_WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _overlaps_itself(out: Array) -> bool:
    """Tell whether elements of `out` share memory: some stride is less than the span below it."""
    if out.flags.c_contiguous:
        return False
    span = out.itemsize
    for stride, size in sorted(
        (abs(stride), size) for stride, size in zip(out.strides, out.shape, strict=True) if size > 1
    ):
        if stride < span:
            return True
        span += stride * (size - 1)
    return False
