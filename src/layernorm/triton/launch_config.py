"""The size of each launch: rows, columns and warps of a program. Imports the standard library only.

The y and dx of a row must not depend on the other rows, so tiles follow from the number of columns,
the type and the layout, never from the number of rows. Only the number of programs that share the
sums of dweight and dbias depends on the rows, and on the device.

The sizes were derived from registers and bytes in flight, and have not been measured on a GPU.
"""

from functools import lru_cache
from typing import NamedTuple

WARP = 32
VECTOR_BYTES = 16  # the largest load of a thread

# Limits on the elements of a tile, in float32; a float64 counts as two.
_FEW_ELEMENTS = 2048
_MOST_ELEMENTS = 16384
_MOST_BACKWARD_ELEMENTS = 8192
_MOST_ELEMENTS_WITH_SUMS = 4096  # dweight and dbias take four registers more an element
_BLOCK_ELEMENTS = 8192  # of a block of a long row
_MOST_PARTIALS = 4096  # partial sums of a tile with several long rows
_LEAST_WARPS = 4  # of a program
_WARPS_WITH_SUMS = 16  # of a multiprocessor, that hold sums of dweight and dbias

# Column indices are 32 bits, and a program holds the partial sums of all blocks of its row.
MOST_COLS = 2**28


class Tile(NamedTuple):
    """A program's tile, (rows, high, low); column high * low + low."""

    rows: int
    high: int
    low: int  # rows, high, low: powers of two; with `vector`, low elements are 16 bytes
    sum_rows: int  # rows of the sums of dweight and dbias; divides rows
    warps: int
    vector: bool  # rows are read 16 bytes at a time, and must start at a multiple of 16 bytes
    has_sums: bool  # the backward sums dweight and dbias beside dx, else in a kernel of their own
    late_parameters: bool  # load weight and bias after the statistics, to save registers


class LongRowTile(NamedTuple):
    """A tile of long rows, split into `blocks` blocks of (rows, high, low), one a program."""

    blocks: int
    padded_blocks: int  # the power of two from blocks on
    rows: int
    high: int
    low: int
    warps: int
    vector: bool


def next_power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()


def is_vector(cols: int, itemsize: int) -> bool:
    """Tell whether rows are read 16 bytes at a time: their size is a multiple of 16 bytes.

    This depends on the size alone, because it decides the order of summation, and the bits of a row
    must not depend on its address. Rows that are not aligned are copied.
    """
    return cols * itemsize % VECTOR_BYTES == 0


@lru_cache(maxsize=1024)
def row_tile(cols: int, itemsize: int, *, strided: bool, backward: bool = False) -> Tile | None:
    """Choose the tile of rows that fit into one program; None for long rows."""
    tile_of = _strided_tile if strided else _contiguous_tile
    return tile_of(cols, itemsize, backward)


def _contiguous_tile(cols: int, itemsize: int, backward: bool) -> Tile | None:
    padded_cols = max(16, next_power_of_two(cols))
    elements_of_a_row = padded_cols * max(itemsize // 4, 1)
    if elements_of_a_row > (_MOST_BACKWARD_ELEMENTS if backward else _MOST_ELEMENTS):
        return None
    vector = is_vector(cols, itemsize)
    rows = max(1, _FEW_ELEMENTS // elements_of_a_row)
    elements = rows * elements_of_a_row
    least = 8 if backward and padded_cols == 16 else _LEAST_WARPS  # with 4, no register is left
    warps = max(least, elements // (WARP * _elements_of_a_thread(elements, backward)))
    high, low = _high_and_low(padded_cols, itemsize, vector)
    lanes_of_a_row = min(high if vector else padded_cols, WARP * warps)
    sum_rows = min(rows, WARP * warps // lanes_of_a_row)
    has_sums = elements <= _MOST_ELEMENTS_WITH_SUMS
    late_parameters = elements >= 32 * WARP * warps
    return Tile(rows, high, low, sum_rows, warps, vector, has_sums, late_parameters)


def _strided_tile(cols: int, itemsize: int, backward: bool) -> Tile | None:
    """Choose a tile whose neighboring rows are in neighboring lanes."""
    padded_cols = max(4, next_power_of_two(cols))
    elements_of_a_row = padded_cols * max(itemsize // 4, 1)
    most = _MOST_ELEMENTS_WITH_SUMS if backward else _MOST_ELEMENTS
    rows = min(WARP, most // elements_of_a_row)
    if rows < 8:  # fewer than 32 contiguous bytes
        return None
    has_sums = rows == WARP
    if backward and has_sums:  # beside 32 rows the sums of 128 channels spill
        rows = min(rows, most // 2 // elements_of_a_row)
    elements = rows * elements_of_a_row
    # with 4, the sums of 64 channels spill
    least = 8 if backward and elements >= 2048 else _LEAST_WARPS
    warps = max(least, elements // (WARP * _elements_of_a_thread(elements, backward)))
    return Tile(rows, padded_cols // 4, 4, rows, warps, False, has_sums, False)


def _elements_of_a_thread(elements: int, backward: bool) -> int:
    """Choose for a tile of so many elements."""
    return 16 if backward or elements <= 4096 else 32


def _high_and_low(cols: int, itemsize: int, vector: bool) -> tuple[int, int]:
    if not vector:
        return 4, cols // 4
    low = VECTOR_BYTES // itemsize
    return cols // low, low


@lru_cache(maxsize=1024)
def long_row_tile(cols: int, itemsize: int, *, strided: bool = False) -> LongRowTile:
    """Choose the tile of rows of any length, with one program for each of its blocks.

    Every program reads the partial sums of all blocks of its rows. Longer rows have more blocks, so
    fewer neighboring rows share a tile.
    """
    elements = _BLOCK_ELEMENTS // max(itemsize // 4, 1)
    rows = WARP if strided else 1
    while rows > 1 and rows * next_power_of_two(-(-cols * rows // elements)) > _MOST_PARTIALS:
        rows //= 2
    block = elements // rows
    vector = not strided and is_vector(cols, itemsize)
    high, low = _high_and_low(block, itemsize, vector)
    if strided:
        high, low = low, high
    blocks = -(-cols // block)
    return LongRowTile(blocks, next_power_of_two(blocks), rows, high, low, 16, vector)


def warps_for_partials(tile: LongRowTile) -> int:
    """Return how many warps add the partial sums of a tile."""
    return max(1, min(16, tile.rows * tile.padded_blocks // 512))


def tiles_in_group(cols: int, itemsize: int, tile: LongRowTile) -> int:
    """Return how many tiles go through all launches together.

    What one launch reads should still be in the L2 cache for the next: 16 MiB.
    """
    return max(1, 16 * 2**20 // (cols * itemsize * tile.rows))


class ColumnTile(NamedTuple):
    """A tile for the sums of columns, (rows, high, low)."""

    rows: int
    high: int
    low: int
    warps: int
    vector: bool


def column_tile(cols: int, itemsize: int, *, strided: bool) -> ColumnTile:
    """Choose the tile that sums dweight and dbias without dx."""
    if strided:
        return ColumnTile(WARP, 4, 4, 4, False)
    vector = is_vector(cols, itemsize)
    high, low = _high_and_low(WARP * 4, itemsize, vector)
    warps = 8 if itemsize == 8 else 4  # pairs of float64 take twice the registers
    return ColumnTile(16, high, low, warps, vector)


def programs_for_sums(tiles: int, multiprocessors: int, tile: Tile) -> int:
    """Return how many programs share a member's tiles, each with partial sums of dweight and dbias.

    The number of members does not count, so that a member has the bits of a call with its rows
    alone. Partial sums take 16 bytes a column, written and read; of fewer than 16 rows each, those
    of many members would take more memory than x.
    """
    enough = -(-tiles * tile.rows // 16)
    return min(tiles, enough, multiprocessors * max(1, _WARPS_WITH_SUMS // tile.warps))


def splits_of_rows(tiles: int, column_blocks: int, multiprocessors: int) -> int:
    """Return how many programs share a member's tiles of a block of columns."""
    wanted = -(-8 * multiprocessors // column_blocks)
    return max(1, min(wanted, -(-tiles // 4)))


class PartialSumsTile(NamedTuple):
    """A tile of the partial sums of dweight and dbias: of `rows` programs and `block` columns."""

    rows: int
    block: int
    warps: int


PARTIAL_SUMS = PartialSumsTile(rows=16, block=64, warps=4)
