"""Arrays as they come from users, and what the kernels can take: aligned, native, with one stride.

Nothing here copies x: that is for blocks.py, and only where the kernels cannot read it as it lies.
"""

import functools
import sys
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from layernorm import spec

Array = npt.NDArray[Any]
View = tuple[spec.Layout, tuple[int, int]]
Description = tuple[np.dtype[Any], spec.Shape]

# Finding whether two odd views share an element can take exponential time: past this much work,
# they are taken to overlap.
_OVERLAP_WORK = 100_000


def convert(name: str, type_name: str) -> str:
    """Write how a user of NumPy converts an array: the last words of an error."""
    module = "ml_dtypes" if type_name == "bfloat16" else "np"
    return f"{name}.astype({module}.{type_name})"


def as_array(name: str, value: npt.ArrayLike) -> Array:
    """Take an ndarray as it is (without its subclass), and an array-like through np.asarray."""
    if type(value) is np.ndarray:
        return value
    if "numpy.ma" in sys.modules and isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, expected a plain one: pass {name}.filled(fill_value)"
        )
    return np.asarray(value)


normalized_shape = functools.lru_cache(maxsize=1024)(spec.normalized_shape)
statistics_shape = functools.lru_cache(maxsize=1024)(spec.statistics_shape)


@functools.lru_cache(maxsize=64)
def type_name(dtype: np.dtype[Any]) -> str:
    """Name the type, whatever its byte order: "float32"."""
    return dtype.name


@functools.lru_cache(maxsize=64)
def native_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Find the type in this machine's byte order."""
    return np.dtype(dtype.type)


@functools.lru_cache(maxsize=64)
def compute_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Find the type of the statistics of an x of type `dtype`."""
    return np.dtype(spec.compute_type(dtype.name))


def axes_of(axis: spec.Axis, ndim: int) -> tuple[int, ...]:
    """Do what spec.normalize_axes does, at once for a plain int."""
    if type(axis) is int and -ndim <= axis < ndim:
        return (axis % ndim,)
    return spec.normalize_axes(axis, ndim)


def describe(array: Array | None) -> Description | None:
    """Return what checks need to know of an array. It can be hashed, so the checks are cached."""
    return None if array is None else (array.dtype, array.shape)


@overload
def contiguous(array: Array) -> Array: ...
@overload
def contiguous(array: Array | None) -> Array | None: ...
def contiguous(array: Array | None) -> Array | None:
    """Lay a parameter or a statistic out for the kernels: contiguous, aligned, native."""
    if array is None:
        return None
    flags = array.flags
    if flags.c_contiguous and flags.aligned and array.dtype.isnative:
        return array
    return np.array(array, dtype=native_type(array.dtype), order="C")


def view(array: Array, axes: tuple[int, ...]) -> View | None:
    """See an array as the kernels do, (layout, strides in elements), or None: it takes a copy."""
    flags = array.flags
    dtype = array.dtype
    if not (flags.aligned and dtype.isnative):
        return None
    if flags.c_contiguous:
        return contiguous_view(array.shape, axes)
    itemsize = dtype.itemsize
    if dtype.alignment != itemsize and any(stride % itemsize for stride in array.strides):
        return None
    strides = tuple(stride // itemsize for stride in array.strides)
    collapsed = spec.collapse(array.shape, strides, axes)
    return collapsed and (collapsed[0], collapsed[1:])


@functools.lru_cache(maxsize=1024)
def contiguous_view(shape: spec.Shape, axes: tuple[int, ...]) -> View | None:
    """See a new C-contiguous array of `shape` as the kernels do."""
    layout = spec.layout_of(shape, axes)
    return layout and (layout, (layout.cols * layout.inner, layout.inner))


def check_out(out: Array, x: Array, **parameters: Array | None) -> None:
    """Check that y can be written to `out`: ndarray, shape, type, no overlap but x itself."""
    if not isinstance(out, np.ndarray):
        raise TypeError(
            f"out is of type {type(out).__name__}, expected a numpy.ndarray to write y into: "
            "pass one, or no out"
        )
    out = as_array("out", out)
    overlaps = "itself" if _overlaps_itself(out) else None
    for name, other in {"x": x, **parameters}.items():
        if (
            other is not None
            and _overlap(out, other)
            and not (name == "x" and _is_same_memory(out, other))
        ):
            overlaps = name
    spec.check_out(
        out.shape,
        type_name(out.dtype),
        x.shape,
        type_name(x.dtype),
        writeable=out.flags.writeable,
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
    """Tell whether two elements share memory: whether an axis steps inside a smaller one's span."""
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
