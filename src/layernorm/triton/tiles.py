"""Tiles: the indices of their elements, and how they are loaded and stored.

A tile is (rows, HIGH, LOW), and column high * LOW + low. Element (outer, col, inner) of an array is
at outer * outer_stride + col * col_stride + inner; it belongs to row outer * (size of inner) +
inner. Tiles are computed in float32, and in float64 for float64. Masked elements are loaded as 0.

A member is a group of rows with weight and bias of its own, which all rows of a tile share. The
tiles of a member are neighbors, cut as those of a call with its rows alone. OUTER_AXES says what
outer is: 1, one axis, and one member; 2, a member's own rows, and the members; 3, (before, member,
after), the member's own rows being before and after together. Axes of outer have a stride each.

The kernels pass on `sizes`, (rows, inner, members, after), and for each array `strides`, (outer,
member, after, col). With 2, the size of after is 1 where the members alternate, and else how many
rows outer has for each member. With 3, outer's stride is before's.
"""

from typing import NamedTuple

import triton
import triton.language as tl


class TileIndex(NamedTuple):
    """The indices of a tile's rows and columns, and their masks."""

    row: tl.tensor  # (rows,) int64
    outer: tl.tensor  # (rows,) int64: of the member's own rows; OUTER_AXES == 3: before
    member: tl.tensor  # () int64; 0 if OUTER_AXES == 1
    after: tl.tensor  # (rows,) or () int64; 0 unless OUTER_AXES == 3
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
    member,
    tile,
    sizes,
    cols,
    COLS: tl.constexpr,
    ROWS: tl.constexpr,
    STRIDED: tl.constexpr,
    OUTER_AXES: tl.constexpr,
):
    """Return the index of a tile of ROWS rows: neighbors along inner if STRIDED, else along outer.

    Args: `member`, and which of its tiles.
    """
    rows, inner, members, after_size = sizes
    offsets = tl.arange(0, ROWS).to(tl.int64)
    if STRIDED:
        tiles_of_sample = (inner + ROWS - 1) // ROWS
        own = tile // tiles_of_sample
        inner_index = (tile % tiles_of_sample) * ROWS + offsets
    else:
        own = tile * ROWS + offsets
        inner_index = tl.zeros_like(offsets)
    outer = own
    after = 0
    place = own  # in outer, as if it were one axis
    own_rows = rows
    if OUTER_AXES == 2:
        place = own * tl.where(after_size == 1, members, 1) + member * after_size
        own_rows = rows // members
    elif OUTER_AXES == 3:
        if STRIDED:
            outer = own // after_size
            after = own % after_size
        else:
            outer, after = divided(tile * ROWS, after_size, ROWS)
        place = (outer * members + member) * after_size + after
        own_rows = rows // members
    if STRIDED:
        row = place * inner + inner_index
        outer += tl.zeros_like(offsets)
        row_mask = inner_index < inner
    else:
        row = place
        row_mask = own < own_rows
    mask = row_mask[:, None, None] & (cols < COLS)[None, :, :]
    return TileIndex(row, outer, member, after, inner_index, row_mask, cols, mask)


@triton.jit
def divided(first, size, ROWS: tl.constexpr):
    """Divide first, first + 1, ... (ROWS of them) by `size`: return quotients and remainders.

    One division has 64 bits; with ROWS of these, rows of few columns would spill registers.
    """
    offsets = tl.arange(0, ROWS)
    remainder = first % size
    until_next = tl.minimum(size - remainder, ROWS).to(tl.int32)
    further = (offsets - until_next) // tl.minimum(size, ROWS).to(tl.int32)
    more = tl.where(offsets < until_next, 0, 1 + further).to(tl.int64)
    return first // size + more, remainder + offsets - more * size


@triton.jit
def member_of(index, size, OUTER_AXES: tl.constexpr):
    """Return the member of a tile or program, and its index in the member, which has `size`."""
    if OUTER_AXES == 1:
        return 0, index
    else:
        return index // size, index % size


@triton.jit
def member_of_tile(
    tile, sizes, ROWS: tl.constexpr, STRIDED: tl.constexpr, OUTER_AXES: tl.constexpr
):
    """Return the member of a tile of ROWS rows, and which of the member's tiles it is."""
    rows, inner, members, _ = sizes
    if STRIDED:
        tiles = rows // (inner * members) * ((inner + ROWS - 1) // ROWS)
    else:
        tiles = (rows // members + ROWS - 1) // ROWS
    return member_of(tile, tiles, OUTER_AXES)


@triton.jit
def index_of_block(
    first_tile,
    program,
    sizes,
    COLS: tl.constexpr,
    STRIDED: tl.constexpr,
    OUTER_AXES: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Return the index of a program's block: the BLOCKS blocks of `first_tile` come first."""
    cols = cols_of_tile(HIGH, LOW) + (program % BLOCKS).to(tl.int32) * (HIGH * LOW)
    tile = first_tile + program // BLOCKS
    member, tile = member_of_tile(tile, sizes, ROWS, STRIDED, OUTER_AXES)
    return index_of_tile(member, tile, sizes, cols, COLS, ROWS, STRIDED, OUTER_AXES)


@triton.jit
def pointers_to(base, index, strides, STRIDED: tl.constexpr, VECTOR: tl.constexpr):
    """Return the pointers to a tile. VECTOR: each row starts at a multiple of LOW elements.

    These are 16 bytes, or of q in 8 bits fewer.
    The compiler assigns a tile's axes to threads in the order of their contiguity, and vectorizes
    along the innermost axis only. Triton 3.6 and 3.9 break a tie of the other two axes in opposite
    ways; the contiguity of 2 given here decides it.
    """
    ROWS: tl.constexpr = index.row.shape[0]
    LOW: tl.constexpr = index.cols.shape[1]
    outer_stride, member_stride, after_stride, col_stride = strides
    row_offsets = index.outer * outer_stride
    row_offsets += index.member * member_stride + index.after * after_stride
    if STRIDED:
        row_offsets += index.inner
        pointers = base + row_offsets[:, None, None] + index.cols[None, :, :] * col_stride
        if ROWS > 2:
            pointers = tl.max_contiguous(pointers, (ROWS, 2, 1))
        return pointers
    else:
        pointers = base + row_offsets[:, None, None] + index.cols[None, :, :]
        if VECTOR:
            size: tl.constexpr = LOW * base.dtype.element_ty.primitive_bitwidth // 8
            pointers = tl.multiple_of(pointers, (1, 1, size))
            if LOW > 2:
                pointers = tl.max_contiguous(pointers, (1, 2, LOW))
        return pointers


@triton.jit
def load_tile(
    base,
    index,
    strides,
    STRIDED: tl.constexpr,
    VECTOR: tl.constexpr,
    dtype: tl.constexpr,
    AGAIN: tl.constexpr = False,
):
    """Load a tile and convert it to `dtype`, the compute type.

    AGAIN: it was loaded before. The compiler merges equal loads and holds the tile in registers in
    between, which then spill; another eviction policy makes the loads differ. Not if STRIDED: there
    it holds the addresses, which take more registers.
    """
    pointers = pointers_to(base, index, strides, STRIDED, VECTOR)
    if AGAIN and not STRIDED:
        tile = tl.load(pointers, mask=index.mask, other=0.0, eviction_policy="evict_first")
    else:
        tile = tl.load(pointers, mask=index.mask, other=0.0)
    return tile.to(dtype)


@triton.jit
def store_tile(base, value, index, strides, STRIDED: tl.constexpr, VECTOR: tl.constexpr):
    """Round a tile to the array's type and store it."""
    pointers = pointers_to(base, index, strides, STRIDED, VECTOR)
    tl.store(pointers, value.to(base.dtype.element_ty), mask=index.mask)


@triton.jit
def load_rows(
    x_ptr,
    addend_ptr,
    total_ptr,
    index,
    x_strides,
    addend_strides,
    total_strides,
    ADDEND: tl.constexpr,
    STRIDED: tl.constexpr,
    VECTOR: tl.constexpr,
    dtype: tl.constexpr,
):
    """Load the tile to normalize: x, or with ADDEND x + addend, which is rounded and stored."""
    x = load_tile(x_ptr, index, x_strides, STRIDED, VECTOR, dtype)
    if ADDEND:
        x += load_tile(addend_ptr, index, addend_strides, STRIDED, VECTOR, dtype)
        x = x.to(total_ptr.dtype.element_ty).to(dtype)
        store_tile(total_ptr, x, index, total_strides, STRIDED, VECTOR)
    return x


@triton.jit
def load_parameter(
    base,
    member,
    cols,
    PRESENT: tl.constexpr,
    ABSENT: tl.constexpr,
    ADD_ONE: tl.constexpr,
    COLS: tl.constexpr,
    VECTOR: tl.constexpr,
    dtype: tl.constexpr,
):
    """Load a member's weight or bias as a tile of one row; a tile of ABSENT if not PRESENT."""
    if PRESENT:
        pointers = base + member * COLS + cols[None, :, :]
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
