"""Where a program's tile lies in memory, and how it is loaded and stored.

A tile is (rows, HIGH, LOW), column high * LOW + low, of the array element (o, c, i) at
o * outer_stride + c * col_stride + i, whose row is o * inner + i. Its arithmetic is float32
(float64 for float64). What is not there is loaded as 0.
"""

from typing import NamedTuple

import triton
import triton.language as tl


class Place(NamedTuple):
    """The rows and columns of a tile."""

    row: tl.tensor  # (rows,) int64: their numbers
    outer: tl.tensor  # (rows,) int64: o
    within: tl.tensor  # (rows,) int64: i
    live: tl.tensor  # (rows,): which of the rows there are
    cols: tl.tensor  # (HIGH, LOW): their numbers
    inside: tl.tensor  # (rows or 1, HIGH, LOW): which of the elements there are


@triton.jit
def cols_of_tile(HIGH: tl.constexpr, LOW: tl.constexpr):
    """Return the numbers of a tile's columns, (HIGH, LOW)."""
    return tl.arange(0, HIGH)[:, None] * LOW + tl.arange(0, LOW)[None, :]


@triton.jit
def place_of_tile(
    tile, rows, inner, cols, COLS: tl.constexpr, ROWS: tl.constexpr, STRIDED: tl.constexpr
):
    """Return the place of a tile of ROWS rows. STRIDED: of neighbors along i, else along o."""
    at = tl.arange(0, ROWS).to(tl.int64)
    if STRIDED:
        blocks = (inner + ROWS - 1) // ROWS
        outer = tile // blocks
        within = (tile % blocks) * ROWS + at
        row = outer * inner + within
        outer += tl.zeros_like(at)
        live = within < inner
    else:
        row = tile * ROWS + at
        outer = row
        within = tl.zeros_like(at)
        live = row < rows
    inside = live[:, None, None] & (cols < COLS)[None, :, :]
    return Place(row, outer, within, live, cols, inside)


@triton.jit
def place_of_chunk(
    first,
    program,
    rows,
    inner,
    COLS: tl.constexpr,
    STRIDED: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Return the place of one of the CHUNKS pieces of a tile; program 0 has tile `first`."""
    cols = cols_of_tile(HIGH, LOW) + (program % CHUNKS).to(tl.int32) * (HIGH * LOW)
    return place_of_tile(first + program // CHUNKS, rows, inner, cols, COLS, ROWS, STRIDED)


@triton.jit
def pointers_to(base, place, outer_stride, col_stride, STRIDED: tl.constexpr, VECTOR: tl.constexpr):
    """Return the pointers to a tile. VECTOR: each row starts at a multiple of 16 bytes.

    The compiler hands out the axes to threads by how much of each it takes to be contiguous, and of
    the innermost one alone it reads more than one element at a time. Of the two others one comes
    first in Triton 3.6 and the other in 3.9: the 2s say which it shall be.
    """
    ROWS: tl.constexpr = place.row.shape[0]
    LOW: tl.constexpr = place.cols.shape[1]
    if STRIDED:
        rows = place.outer * outer_stride + place.within
        pointers = base + rows[:, None, None] + place.cols[None, :, :] * col_stride
        if ROWS > 2:
            pointers = tl.max_contiguous(pointers, (ROWS, 2, 1))
        return pointers
    else:
        pointers = base + (place.outer * outer_stride)[:, None, None] + place.cols[None, :, :]
        if VECTOR:
            pointers = tl.multiple_of(pointers, (1, 1, 16))
            if LOW > 2:
                pointers = tl.max_contiguous(pointers, (1, 2, LOW))
        return pointers


@triton.jit
def load_tile(
    base,
    place,
    outer_stride,
    col_stride,
    STRIDED: tl.constexpr,
    VECTOR: tl.constexpr,
    dtype: tl.constexpr,
):
    """Load a tile in the type of its arithmetic."""
    pointers = pointers_to(base, place, outer_stride, col_stride, STRIDED, VECTOR)
    return tl.load(pointers, mask=place.inside, other=0.0).to(dtype)


@triton.jit
def store_tile(
    base, value, place, outer_stride, col_stride, STRIDED: tl.constexpr, VECTOR: tl.constexpr
):
    """Store a tile, rounded to the array's type."""
    pointers = pointers_to(base, place, outer_stride, col_stride, STRIDED, VECTOR)
    tl.store(pointers, value.to(base.dtype.element_ty), mask=place.inside)


@triton.jit
def load_parameter(
    base,
    cols,
    PRESENT: tl.constexpr,
    ABSENT: tl.constexpr,
    ADD_ONE: tl.constexpr,
    COLS: tl.constexpr,
    VECTOR: tl.constexpr,
    dtype: tl.constexpr,
):
    """Load weight or bias as a tile of one row, full of ABSENT where there is none."""
    if PRESENT:
        pointers = base + cols[None, :, :]
        if VECTOR:
            pointers = tl.multiple_of(pointers, (1, 1, 16))
            if cols.shape[1] > 2:
                pointers = tl.max_contiguous(pointers, (1, 2, cols.shape[1]))
        value = tl.load(pointers, mask=(cols < COLS)[None, :, :], other=0.0).to(dtype)
        if ADD_ONE:
            value += 1.0
        return value
    else:
        return tl.full([1, cols.shape[0], cols.shape[1]], ABSENT, dtype)
