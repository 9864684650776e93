"""Tiles: the indices of their elements, and how they are loaded and stored.

A tile is (rows, HIGH, LOW), and column high * LOW + low. Element (outer, col, inner) of an array is
at outer * outer_stride + col * col_stride + inner; it belongs to row outer * (size of inner) +
inner. Tiles are computed in float32, and in float64 for float64. Masked elements are loaded as 0.
"""

from typing import NamedTuple

import triton
import triton.language as tl


class TileIndex(NamedTuple):
    """The indices of a tile's rows and columns, and their masks."""

    row: tl.tensor  # (rows,) int64
    outer: tl.tensor  # (rows,) int64
    inner: tl.tensor  # (rows,) int64
    row_mask: tl.tensor  # (rows,)
    cols: tl.tensor  # (HIGH, LOW)
    mask: tl.tensor  # (rows or 1, HIGH, LOW)


@triton.jit
def cols_of_tile(HIGH: tl.constexpr, LOW: tl.constexpr):
    """Return the columns of a tile, (HIGH, LOW)."""
    return tl.arange(0, HIGH)[:, None] * LOW + tl.arange(0, LOW)[None, :]


@triton.jit
def index_of_tile(
    tile, rows, inner, cols, COLS: tl.constexpr, ROWS: tl.constexpr, STRIDED: tl.constexpr
):
    """Return the index of a tile of ROWS rows: neighbors along inner if STRIDED, else along outer.

    Args: `inner` is the size of the inner axis.
    """
    offsets = tl.arange(0, ROWS).to(tl.int64)
    if STRIDED:
        tiles_of_sample = (inner + ROWS - 1) // ROWS
        outer_index = tile // tiles_of_sample
        inner_index = (tile % tiles_of_sample) * ROWS + offsets
        row = outer_index * inner + inner_index
        outer_index += tl.zeros_like(offsets)
        row_mask = inner_index < inner
    else:
        row = tile * ROWS + offsets
        outer_index = row
        inner_index = tl.zeros_like(offsets)
        row_mask = row < rows
    mask = row_mask[:, None, None] & (cols < COLS)[None, :, :]
    return TileIndex(row, outer_index, inner_index, row_mask, cols, mask)


@triton.jit
def index_of_block(
    first_tile,
    program,
    rows,
    inner,
    COLS: tl.constexpr,
    STRIDED: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Return the index of a program's block: the BLOCKS blocks of `first_tile` come first."""
    cols = cols_of_tile(HIGH, LOW) + (program % BLOCKS).to(tl.int32) * (HIGH * LOW)
    return index_of_tile(first_tile + program // BLOCKS, rows, inner, cols, COLS, ROWS, STRIDED)


@triton.jit
def pointers_to(base, index, outer_stride, col_stride, STRIDED: tl.constexpr, VECTOR: tl.constexpr):
    """Return the pointers to a tile. VECTOR: each row starts at a multiple of 16 bytes.

    The compiler assigns a tile's axes to threads in the order of their contiguity, and vectorizes
    along the innermost axis only. Triton 3.6 and 3.9 break a tie of the other two axes in opposite
    ways; the contiguity of 2 given here decides it.
    """
    ROWS: tl.constexpr = index.row.shape[0]
    LOW: tl.constexpr = index.cols.shape[1]
    if STRIDED:
        row_offsets = index.outer * outer_stride + index.inner
        pointers = base + row_offsets[:, None, None] + index.cols[None, :, :] * col_stride
        if ROWS > 2:
            pointers = tl.max_contiguous(pointers, (ROWS, 2, 1))
        return pointers
    else:
        pointers = base + (index.outer * outer_stride)[:, None, None] + index.cols[None, :, :]
        if VECTOR:
            pointers = tl.multiple_of(pointers, (1, 1, 16))
            if LOW > 2:
                pointers = tl.max_contiguous(pointers, (1, 2, LOW))
        return pointers


@triton.jit
def load_tile(
    base,
    index,
    outer_stride,
    col_stride,
    STRIDED: tl.constexpr,
    VECTOR: tl.constexpr,
    dtype: tl.constexpr,
):
    """Load a tile and convert it to `dtype`, the compute type."""
    pointers = pointers_to(base, index, outer_stride, col_stride, STRIDED, VECTOR)
    return tl.load(pointers, mask=index.mask, other=0.0).to(dtype)


@triton.jit
def store_tile(
    base, value, index, outer_stride, col_stride, STRIDED: tl.constexpr, VECTOR: tl.constexpr
):
    """Round a tile to the array's type and store it."""
    pointers = pointers_to(base, index, outer_stride, col_stride, STRIDED, VECTOR)
    tl.store(pointers, value.to(base.dtype.element_ty), mask=index.mask)


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
    """Load weight or bias as a tile of one row; a tile of ABSENT if not PRESENT."""
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
