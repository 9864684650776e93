"""How many rows, columns and warps each GPU program takes. Plain integers; standard library only.

A row's y and dx must not depend on the other rows, so everything about a program follows from the
width, the type and the layout, never from the number of rows. Only how many programs share the sums
of dweight and dbias depends on the rows, and on the device.

The numbers were reasoned from registers and bytes in flight, and have not been measured on a GPU.
"""

from functools import lru_cache
from typing import NamedTuple

WARP = 32
VECTOR_BYTES = 16  # the widest load of a thread

# What a tile may hold, in elements of float32; float64 takes two each.
_FEW_ELEMENTS = 2048
_MOST_ELEMENTS = 16384
_MOST_BACKWARD_ELEMENTS = 8192
_MOST_ELEMENTS_WITH_SUMS = 4096  # dweight and dbias take four registers an element more
_CHUNK_ELEMENTS = 8192
_MOST_PARTIALS = 4096  # that the chunks of a tile of several rows leave

# Columns are numbered in 32 bits, and a program has what all chunks of its row left in registers.
MOST_COLS = 2**28


class Tile(NamedTuple):
    """What one program has in registers: (rows, high, low), column high * low + low."""

    rows: int
    high: int
    low: int  # powers of two; with `vector`, the elements of 16 bytes
    kept: int  # rows of the sums of dweight and dbias; divides rows
    warps: int
    vector: bool  # each row is read in pieces of 16 bytes, and must start at a multiple of them
    has_sums: bool  # the backward sums dweight and dbias beside dx; else they take a kernel more
    late_parameters: bool  # weight and bias wait for the statistics: registers are short


class Chunks(NamedTuple):
    """Rows too wide for one program: `pieces` of high * low columns, of `rows` at a time."""

    pieces: int
    most: int  # a power of two, not below pieces
    rows: int
    high: int
    low: int
    warps: int
    vector: bool


def power_of_two_from(number: int) -> int:
    """Return the smallest power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()


def is_vector(cols: int, itemsize: int) -> bool:
    """Tell whether rows of this width are whole pieces of 16 bytes.

    From the width alone: pieces of another size are added in another order, and the bits of a row
    must not depend on where it lies. A row that is not aligned is copied to where it is.
    """
    return cols * itemsize % VECTOR_BYTES == 0


@lru_cache(maxsize=1024)
def rows_tile(cols: int, itemsize: int, *, backward: bool = False) -> Tile | None:
    """Plan for contiguous rows; None where a row is too wide for one program."""
    block = max(16, power_of_two_from(cols))
    elements_of_a_row = block * max(itemsize // 4, 1)
    if elements_of_a_row > (_MOST_BACKWARD_ELEMENTS if backward else _MOST_ELEMENTS):
        return None
    vector = is_vector(cols, itemsize)
    rows = max(1, _FEW_ELEMENTS // elements_of_a_row)
    elements = rows * elements_of_a_row
    per_thread = 16 if backward or elements <= 4096 else 32
    least = 8 if backward and block == 16 else 4  # with 4, no register is left
    warps = max(least, elements // (WARP * per_thread))
    wide = VECTOR_BYTES // itemsize
    high, low = (block // wide, wide) if vector else (4, block // 4)
    lanes_of_a_row = min(high if vector else block, WARP * warps)
    kept = min(rows, WARP * warps // lanes_of_a_row)
    has_sums = elements <= _MOST_ELEMENTS_WITH_SUMS
    return Tile(rows, high, low, kept, warps, vector, has_sums, _is_full(elements, warps))


def _is_full(elements: int, warps: int) -> bool:
    return elements >= 32 * WARP * warps


@lru_cache(maxsize=1024)
def strided_tile(cols: int, itemsize: int, *, backward: bool = False) -> Tile | None:
    """Plan for channels first: neighboring rows in neighboring lanes; None where too wide."""
    block = max(4, power_of_two_from(cols))
    elements_of_a_row = block * max(itemsize // 4, 1)
    most = _MOST_ELEMENTS_WITH_SUMS if backward else _MOST_ELEMENTS
    rows = min(WARP, most // elements_of_a_row)
    if rows < 8:  # less than 32 bytes next to each other
        return None
    has_sums = rows == WARP
    if backward and has_sums:  # beside 32 rows the sums of 128 channels spill
        rows = min(rows, most // 2 // elements_of_a_row)
    elements = rows * elements_of_a_row
    per_thread = 16 if backward or elements <= 4096 else 32
    least = 8 if backward and elements >= 2048 else 4  # with 4, the sums of 64 channels spill
    warps = max(least, elements // (WARP * per_thread))
    return Tile(rows, block // 4, 4, rows, warps, False, has_sums, False)


@lru_cache(maxsize=1024)
def chunks_of(cols: int, itemsize: int, *, strided: bool = False) -> Chunks:
    """Plan for rows of any width, a program for each piece of a row, or of neighboring rows.

    Neighbors are read next to each other, and every program reads what all pieces of its rows have
    left: the wider the rows, the fewer of them go together.
    """
    elements = _CHUNK_ELEMENTS // max(itemsize // 4, 1)
    rows = WARP if strided else 1
    while rows > 1 and rows * power_of_two_from(-(-cols * rows // elements)) > _MOST_PARTIALS:
        rows //= 2
    block = elements // rows
    vector = not strided and is_vector(cols, itemsize)
    wide = VECTOR_BYTES // itemsize
    high, low = (block // wide, wide) if vector else (4, block // 4)
    if strided:
        high, low = low, high
    pieces = -(-cols // block)
    return Chunks(pieces, power_of_two_from(pieces), rows, high, low, 16, vector)


def warps_for_partials(chunks: Chunks) -> int:
    """Say how many warps add up what the chunks of a tile left."""
    return max(1, min(16, chunks.rows * chunks.most // 512))


def tiles_together(cols: int, itemsize: int, chunks: Chunks) -> int:
    """Say how many tiles too wide for one program go through all steps before the next begin.

    What one step has read should still be in the second-level cache for the next one.
    """
    return max(1, 16 * 2**20 // (cols * itemsize * chunks.rows))


class Columns(NamedTuple):
    """For dweight and dbias by themselves: (rows, high, low) at a time, down the rows."""

    rows: int
    high: int
    low: int
    warps: int
    vector: bool


def columns_tile(cols: int, itemsize: int, *, strided: bool) -> Columns:
    """Plan for the sums of columns of any width."""
    if strided:
        return Columns(WARP, 4, 4, 4, False)
    vector = is_vector(cols, itemsize)
    wide = VECTOR_BYTES // itemsize
    warps = 8 if itemsize == 8 else 4  # pairs of float64 take twice the registers
    return Columns(16, *((WARP * 4 // wide, wide) if vector else (4, WARP)), warps, vector)


def programs_for_sums(tiles: int, multiprocessors: int, tile: Tile) -> int:
    """Say how many programs share the tiles, each with sums of its own for dweight and dbias."""
    return min(tiles, multiprocessors * max(1, 16 // tile.warps))


def splits_of_rows(tiles: int, column_blocks: int, multiprocessors: int) -> int:
    """Say into how many parts the rows are cut for the sums of columns by themselves."""
    wanted = -(-8 * multiprocessors // column_blocks)
    return max(1, min(wanted, -(-tiles // 4)))


class Sums(NamedTuple):
    """For the last addition: `chunk` programs' sums at a time, of `block` columns."""

    chunk: int
    block: int
    warps: int


def sums_tile() -> Sums:
    """Plan for adding up what the programs left."""
    return Sums(chunk=16, block=64, warps=4)
