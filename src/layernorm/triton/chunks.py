"""Rows too wide for one program: a program for each chunk of each tile of rows, in steps.

What a chunk adds to its rows' sums is stored, in (tiles, CHUNKS, ROWS), and each program of the
next step adds up what all chunks of its rows have stored: in one order, whatever the number of
rows. A row's numbers in a chunk are scaled by a power of two of their own, so that no sum leaves
its range. Contiguous rows are alone in their tiles; STRIDED ones have their neighbors with them.

Here are the steps that measure the rows, and what the later ones make of it.
"""

import triton
import triton.language as tl

from layernorm.triton.kernel import kernel
from layernorm.triton.rows import (
    any_row,
    exponent_of,
    is_ordinary_rstd,
    largest_of_rows,
    over,
    power_of_two,
    row_sums,
    scaled_rstd,
    scaling_exponents,
)
from layernorm.triton.tiles import load_tile, place_of_chunk


@triton.jit
def of_own_chunk(base, program, ROWS: tl.constexpr):
    """Return where a program stores what its chunk has: (ROWS,)."""
    return base + program * ROWS + tl.arange(0, ROWS)


@triton.jit
def of_all_chunks(base, tile, other, CHUNKS: tl.constexpr, ROWS: tl.constexpr, MOST: tl.constexpr):
    """Load what the chunks of a tile have stored: (ROWS, MOST)."""
    chunk = tl.arange(0, MOST)[None, :]
    at = (tile * CHUNKS + chunk) * ROWS + tl.arange(0, ROWS)[:, None]
    return tl.load(base + at, mask=chunk < CHUNKS, other=other)


@triton.jit
def are_extraordinary(rstd_ptr, place):
    """Tell which rows have a saved rstd that the backward cannot use."""
    rstd = tl.load(rstd_ptr + place.row, mask=place.live, other=1.0)
    return is_ordinary_rstd(rstd) == 0


@triton.jit
def first_mean(
    largest_ptr,
    sum_ptr,
    tile,
    dtype: tl.constexpr,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    MOST: tl.constexpr,
):
    """Return exponent, scale and mean of the rows times 2^-exponent."""
    largest = of_all_chunks(largest_ptr, tile, 0.0, CHUNKS, ROWS, MOST)
    exponent, scale = scaling_exponents(tl.max(largest, 1), EPS)
    mean = tl.zeros([ROWS], dtype)
    if CENTERED:
        parts = of_all_chunks(sum_ptr, tile, 0.0, CHUNKS, ROWS, MOST)
        # 2^-1000: nothing beside the others, and still a normal number
        shift = tl.maximum(exponent_of(largest) - exponent[:, None], -1000)
        mean = over(tl.sum(parts * power_of_two(shift, tl.float64), 1), COLS).to(dtype)
    return exponent, scale, mean


@triton.jit
def merged_statistics(
    largest_ptr,
    sum_ptr,
    rest_ptr,
    squares_ptr,
    tile,
    dtype: tl.constexpr,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    MOST: tl.constexpr,
):
    """Return exponent and normalizer of the rows, measured times 2^-exponent."""
    exponent, scale, mean = first_mean(
        largest_ptr, sum_ptr, tile, dtype, COLS, EPS, CENTERED, CHUNKS, ROWS, MOST
    )
    variance = over(tl.sum(of_all_chunks(squares_ptr, tile, 0.0, CHUNKS, ROWS, MOST), 1), COLS)
    residual = tl.zeros([ROWS], dtype)
    if CENTERED:
        rest = over(tl.sum(of_all_chunks(rest_ptr, tile, 0.0, CHUNKS, ROWS, MOST), 1), COLS)
        square = rest * rest
        # what is left of a constant row, whose first mean was not exact
        around_mean = variance - square
        variance = tl.where(around_mean <= square * 2.0**-40, variance * 0.0, around_mean)
        first = mean.to(tl.float64)
        exact = first + rest
        mean = exact.to(dtype)
        if dtype == tl.float64:
            part = exact - first
            residual = (first - (exact - part)) + (rest - part)
        else:
            residual = (exact - mean.to(tl.float64)).to(dtype)
    return scaled_rstd(variance, exponent, scale, mean, residual, EPS)


@kernel
def wide_sums(
    x_ptr,
    rstd_ptr,
    largest_ptr,
    sum_ptr,
    first: tl.int64,
    rows: tl.int64,
    inner: tl.int64,
    x_outer_stride: tl.int64,
    x_col_stride: tl.int64,
    COLS: tl.constexpr,
    CENTERED: tl.constexpr,
    ONLY_EXTRAORDINARY: tl.constexpr,
    STRIDED: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Store each row's largest magnitude in a chunk, and its sum over a power of two near that.

    ONLY_EXTRAORDINARY: where the saved rstd is one that the backward cannot use.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    place = place_of_chunk(first, program, rows, inner, COLS, STRIDED, CHUNKS, ROWS, HIGH, LOW)
    wanted = place.live
    if ONLY_EXTRAORDINARY:
        wanted = are_extraordinary(rstd_ptr, place)
    if any_row(wanted):
        x = load_tile(x_ptr, place, x_outer_stride, x_col_stride, STRIDED, VECTOR, dtype)
        largest = largest_of_rows(x)
        tl.store(of_own_chunk(largest_ptr, program, ROWS), largest, mask=wanted)
        if CENTERED:
            scale = power_of_two(-exponent_of(largest), dtype)
            total = row_sums(x * scale[:, None, None], False, VECTOR or STRIDED)
            tl.store(of_own_chunk(sum_ptr, program, ROWS), total, mask=wanted)


@kernel
def wide_squares(
    x_ptr,
    mean_ptr,
    rstd_ptr,
    largest_ptr,
    sum_ptr,
    rest_ptr,
    squares_ptr,
    first: tl.int64,
    rows: tl.int64,
    inner: tl.int64,
    x_outer_stride: tl.int64,
    x_col_stride: tl.int64,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    GIVEN_MEAN: tl.constexpr,
    ONLY_EXTRAORDINARY: tl.constexpr,
    STRIDED: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    MOST: tl.constexpr,
):
    """Store each row's sums of x - mean and of its square in a chunk, the mean being the first one.

    GIVEN_MEAN: a saved one, whose residual is wanted.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    place = place_of_chunk(first, program, rows, inner, COLS, STRIDED, CHUNKS, ROWS, HIGH, LOW)
    wanted = place.live
    if ONLY_EXTRAORDINARY:
        wanted = are_extraordinary(rstd_ptr, place)
    if any_row(wanted):
        scale = tl.full([ROWS], 1.0, dtype)
        if GIVEN_MEAN:
            mean = tl.load(mean_ptr + place.row, mask=place.live, other=0.0)
        else:
            _, scale, mean = first_mean(
                *(largest_ptr, sum_ptr, program // CHUNKS, dtype),
                *(COLS, EPS, CENTERED, CHUNKS, ROWS, MOST),
            )
        x = load_tile(x_ptr, place, x_outer_stride, x_col_stride, STRIDED, VECTOR, dtype)
        d = tl.where(place.inside, x * scale[:, None, None] - mean[:, None, None], 0.0)
        if CENTERED:
            rest = row_sums(d, True, VECTOR or STRIDED)
            tl.store(of_own_chunk(rest_ptr, program, ROWS), rest, mask=wanted)
        squares = row_sums(d * d, True, VECTOR or STRIDED)
        tl.store(of_own_chunk(squares_ptr, program, ROWS), squares, mask=wanted)
