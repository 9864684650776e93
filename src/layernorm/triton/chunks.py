"""Rows too wide for one program: a program for each chunk of each row, in steps.

What a chunk adds to its row's sums is stored, and each program of the next step adds up what all
chunks of its row have stored: in one order, whatever the number of rows. A chunk's numbers are
scaled by a power of two of its own, so that no sum leaves its range.

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
def of_all_chunks(base, row, other, CHUNKS: tl.constexpr, MOST: tl.constexpr):
    """Load what the chunks of a row have stored: (1, MOST)."""
    chunk = tl.arange(0, MOST)[None, :]
    return tl.load(base + row[:, None] * CHUNKS + chunk, mask=chunk < CHUNKS, other=other)


@triton.jit
def is_extraordinary(rstd_ptr, row):
    """Tell whether the saved rstd of a row is one that the backward cannot use."""
    return any_row(is_ordinary_rstd(tl.load(rstd_ptr + row)) == 0)


@triton.jit
def first_mean(
    largest_ptr,
    sum_ptr,
    row,
    dtype: tl.constexpr,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    CHUNKS: tl.constexpr,
    MOST: tl.constexpr,
):
    """Return exponent, scale and mean of the row times 2^-exponent."""
    largest = of_all_chunks(largest_ptr, row, 0.0, CHUNKS, MOST)
    exponent, scale = scaling_exponents(tl.max(largest, 1), EPS)
    mean = tl.zeros([1], dtype)
    if CENTERED:
        parts = of_all_chunks(sum_ptr, row, 0.0, CHUNKS, MOST)
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
    row,
    dtype: tl.constexpr,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    CHUNKS: tl.constexpr,
    MOST: tl.constexpr,
):
    """Return exponent and normalizer of the row, measured times 2^-exponent."""
    exponent, scale, mean = first_mean(
        largest_ptr, sum_ptr, row, dtype, COLS, EPS, CENTERED, CHUNKS, MOST
    )
    variance = over(tl.sum(of_all_chunks(squares_ptr, row, 0.0, CHUNKS, MOST), 1), COLS)
    residual = tl.zeros([1], dtype)
    if CENTERED:
        rest = over(tl.sum(of_all_chunks(rest_ptr, row, 0.0, CHUNKS, MOST), 1), COLS)
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
    x_outer_stride: tl.int64,
    COLS: tl.constexpr,
    CENTERED: tl.constexpr,
    ONLY_EXTRAORDINARY: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNKS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Store the largest magnitude of a chunk of x, and its sum over a power of two near that.

    ONLY_EXTRAORDINARY: where the saved rstd is one that the backward cannot use.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    place = place_of_chunk(program, COLS, CHUNKS, HIGH, LOW)
    wanted = True
    if ONLY_EXTRAORDINARY:
        wanted = is_extraordinary(rstd_ptr, place.row)
    if wanted:
        x = load_tile(x_ptr, place, x_outer_stride, 1, False, VECTOR, dtype)
        largest = largest_of_rows(x)
        at = place.within + program
        tl.store(largest_ptr + at, largest)
        if CENTERED:
            scale = power_of_two(-exponent_of(largest), dtype)
            total = row_sums(x * scale[:, None, None], False, VECTOR)
            tl.store(sum_ptr + at, total)


@kernel
def wide_squares(
    x_ptr,
    mean_ptr,
    rstd_ptr,
    largest_ptr,
    sum_ptr,
    rest_ptr,
    squares_ptr,
    x_outer_stride: tl.int64,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    GIVEN_MEAN: tl.constexpr,
    ONLY_EXTRAORDINARY: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNKS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    MOST: tl.constexpr,
):
    """Store a chunk's sums of x - mean and of its square, the mean being the first one.

    GIVEN_MEAN: a saved one, whose residual is wanted.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    place = place_of_chunk(program, COLS, CHUNKS, HIGH, LOW)
    wanted = True
    if ONLY_EXTRAORDINARY:
        wanted = is_extraordinary(rstd_ptr, place.row)
    if wanted:
        scale = tl.full([1], 1.0, dtype)
        if GIVEN_MEAN:
            mean = tl.load(mean_ptr + place.row)
        else:
            _, scale, mean = first_mean(
                largest_ptr, sum_ptr, place.row, dtype, COLS, EPS, CENTERED, CHUNKS, MOST
            )
        x = load_tile(x_ptr, place, x_outer_stride, 1, False, VECTOR, dtype)
        d = tl.where(place.inside, x * scale[:, None, None] - mean[:, None, None], 0.0)
        at = place.within + program
        if CENTERED:
            tl.store(rest_ptr + at, row_sums(d, True, VECTOR))
        tl.store(squares_ptr + at, row_sums(d * d, True, VECTOR))
