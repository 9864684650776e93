"""Named memory layouts: a shape for a width, the normalized axes, and strides."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Axis = int | Sequence[int]


def axes_of(axis: Axis, ndim: int) -> tuple[int, ...]:
    return tuple(sorted(a % ndim for a in ([axis] if isinstance(axis, int) else axis)))


def rows_of(x: Array, axis: Axis) -> Array:
    """View or copy x as (rows, cols): kept axes in order, then normalized axes in order."""
    axes = axes_of(axis, x.ndim)
    kept = [a for a in range(x.ndim) if a not in axes]
    sizes = (math.prod(x.shape[a] for a in part) for part in (kept, axes))
    return x.transpose(*kept, *axes).reshape(*sizes)


def from_rows(rows: Array, shape: Sequence[int], axis: Axis) -> Array:
    """Undo `rows_of`: a C-contiguous array of `shape`."""
    axes = axes_of(axis, len(shape))
    order = [a for a in range(len(shape)) if a not in axes] + list(axes)
    moved = rows.reshape([shape[a] for a in order])
    return np.ascontiguousarray(moved.transpose(np.argsort(order)))


def poisoned(shape: Sequence[int], dtype: np.dtype) -> Array:
    """Make an array of NaN: what is never written stays NaN."""
    return np.full(shape, np.nan, dtype)


def unaligned(x: Array) -> Array:
    """Copy x to one byte past an aligned address."""
    view = np.ndarray(x.shape, x.dtype, buffer=np.empty(x.nbytes + 1, np.uint8), offset=1)
    view[...] = x
    return view


def at_offset(x: Array, elements: int) -> Array:
    """Copy x to `elements` past a 64-byte boundary."""
    raw = np.empty(x.nbytes + 64 + elements * x.itemsize, np.uint8)
    start = -raw.ctypes.data % 64 + elements * x.itemsize
    view = raw[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def dense(x: Array | None) -> Array | None:
    """Copy x as frameworks without strides store it: contiguous, aligned, in native byte order."""
    return None if x is None else np.array(x, x.dtype.newbyteorder("="), order="C")


def byte_swapped(x: Array) -> Array:
    """Copy x in the other byte order; bfloat16, which has only one, as it is."""
    return x.astype(x.dtype.newbyteorder()) if x.dtype.kind == "f" else x.copy()


def read_only(x: Array) -> Array:
    view = x.copy()
    view.flags.writeable = False
    return view


def strided(*steps: int) -> Callable[[Array], Array]:
    """Copy x to memory with these steps, one for each axis; negative ones run backwards."""

    def lay(x: Array) -> Array:
        sizes = [size * abs(step) for size, step in zip(x.shape, steps, strict=True)]
        view = np.empty(sizes, x.dtype)[tuple(slice(None, None, step) for step in steps)]
        view[...] = x
        return view

    return lay


def sliced(x: Array) -> Array:
    """Copy x into the middle of a larger array: a margin of 1 before and 2 after on each axis."""
    view = np.empty([size + 3 for size in x.shape], x.dtype)[(slice(1, -2),) * x.ndim]
    view[...] = x
    return view


def transposed(*order: int) -> Callable[[Array], Array]:
    """Copy x to memory with its axes in this order, the last one contiguous."""
    return lambda x: np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))


class Memory(NamedTuple):
    """Where the elements of an array lie; all but `order` for each axis of the array."""

    order: tuple[int, ...]  # the axes, from the outermost in memory to the innermost
    steps: tuple[int, ...]  # negative ones run backwards; 0 repeats the first index
    margins: tuple[int, ...]  # elements of a larger array before the first
    offset: int = 0  # bytes past an aligned address


def laid_out(x: Array, memory: Memory) -> Array:
    """Copy x to such memory. Along an axis whose step is 0, the first index replaces the others."""
    order, steps, margins, offset = memory
    sizes = [
        1 if step == 0 else size * abs(step) for size, step in zip(x.shape, steps, strict=True)
    ]
    whole = [sizes[axis] + margins[axis] for axis in order]
    raw = np.zeros(math.prod(whole) * x.itemsize + offset, np.uint8)
    larger = np.ndarray(whole, x.dtype, buffer=raw, offset=offset).transpose(np.argsort(order))
    inside = zip(margins, sizes, strict=True)
    view = larger[tuple(slice(margin, margin + size) for margin, size in inside)]
    view = view[tuple(slice(None, None, step or 1) for step in steps)]
    view[...] = x[tuple(slice(None) if step else slice(0, 1) for step in steps)]
    return np.broadcast_to(view, x.shape) if 0 in steps else view


def split(cols: int) -> tuple[int, int]:
    """Return the two factors of cols that are nearest to each other."""
    low = next(f for f in range(math.isqrt(cols), 0, -1) if cols % f == 0)
    return low, cols // low


class Layout(NamedTuple):
    shape: Callable[[int], tuple[int, ...]]  # of the width
    axis: int | tuple[int, ...]
    lay: Callable[[Array], Array] = np.ascontiguousarray


def _rows(cols: int) -> tuple[int, int]:
    return (5, cols)


def _channels(cols: int) -> tuple[int, ...]:
    return (2, cols, 3, 5)


def _heads(cols: int) -> tuple[int, ...]:
    return (2, 9, 3, cols)  # samples, tokens, heads


def _part_of_each_token(x: Array) -> Array:
    """Copy x to the second third of a larger array, as queries, keys and values lie together."""
    view = np.empty((*x.shape[:2], 3 * x.shape[2], x.shape[3]), x.dtype)[:, :, x.shape[2] :][
        :, :, : x.shape[2]
    ]
    view[...] = x
    return view


LAYOUTS: dict[str, Layout] = {
    "contiguous": Layout(_rows, -1),
    "one_axis": Layout(lambda cols: (cols,), 0),
    "row_slice": Layout(_rows, -1, sliced),
    "every_second_row": Layout(_rows, -1, strided(2, 1)),
    "rows_reversed": Layout(_rows, -1, strided(-1, 1)),
    "cols_reversed": Layout(_rows, -1, strided(1, -1)),
    "every_second_col": Layout(_rows, -1, strided(1, 2)),
    "cols_first_in_memory": Layout(_rows, -1, transposed(1, 0)),
    "unaligned": Layout(_rows, -1, unaligned),
    "byte_swapped": Layout(_rows, -1, byte_swapped),
    "read_only": Layout(_rows, -1, read_only),
    "channels_first": Layout(_channels, 1),
    "channels_first_67": Layout(lambda cols: (2, cols, 67), 1),  # 67: a ragged last vector
    "channels_first_sliced": Layout(_channels, 1, sliced),
    "channels_first_reversed": Layout(_channels, 1, strided(-1, -1, 1, -1)),
    "channels_last_in_memory": Layout(_channels, 1, transposed(0, 2, 3, 1)),
    "first_axis": Layout(lambda cols: (cols, 7), 0),
    "middle_axis": Layout(lambda cols: (3, cols, 4), -2),
    "last_two_axes": Layout(lambda cols: (4, *split(cols)), (-2, -1)),
    "middle_two_axes": Layout(lambda cols: (2, *split(cols), 3), (1, 2)),
    "first_two_axes": Layout(lambda cols: (*split(cols), 4), (0, 1)),
    "axes_apart": Layout(lambda cols: (2, split(cols)[0], 3, split(cols)[1]), (1, 3)),
    "axes_apart_unsorted": Layout(lambda cols: (split(cols)[0], 3, split(cols)[1]), (-1, 0)),
    "five_axes": Layout(lambda cols: (2, 1, *split(cols), 3), (2, 3)),
    "five_axes_apart": Layout(lambda cols: (split(cols)[0], 2, 1, 3, split(cols)[1]), (4, 0)),
    "every_axis": Layout(split, (0, 1)),
    "heads": Layout(_heads, -1),
    "heads_of_a_projection": Layout(_heads, -1, _part_of_each_token),
    "heads_before_tokens": Layout(_heads, -1, transposed(0, 2, 1, 3)),
}
