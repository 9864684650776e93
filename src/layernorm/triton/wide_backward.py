"""Backward of rows in chunks: the normalizer of each row, sums for dx, and dx."""

import triton
import triton.language as tl

from layernorm.triton.backward import times_power_of_two
from layernorm.triton.chunks import is_extraordinary, merged_statistics, of_all_chunks
from layernorm.triton.kernel import kernel
from layernorm.triton.rows import (
    Normalizer,
    exponent_of,
    finite_power,
    largest_of_rows,
    load_normalizer,
    normalized,
    over,
    power_of_two,
    row_sums,
    store_normalizer,
)
from layernorm.triton.tiles import load_parameter, load_tile, place_of_chunk, store_tile


@kernel
def wide_normalizer(
    mean_ptr,
    rstd_ptr,
    residual_ptr,
    normalizer_ptr,
    largest_ptr,
    sum_ptr,
    rest_ptr,
    squares_ptr,
    rows: tl.int64,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    CHUNKS: tl.constexpr,
    MOST: tl.constexpr,
):
    """Store the normalizer of a row in (4, rows). EPS None: the statistics are used as given."""
    dtype: tl.constexpr = rstd_ptr.dtype.element_ty
    row = tl.zeros([1], tl.int64) + tl.program_id(0).to(tl.int64)
    mean = tl.zeros([1], dtype)
    residual = tl.zeros([1], dtype)
    if CENTERED:
        mean = tl.load(mean_ptr + row)
        if HAS_RESIDUAL:
            residual = tl.load(residual_ptr + row)
        else:
            rest = tl.sum(of_all_chunks(rest_ptr, row, 0.0, CHUNKS, MOST), 1)
            residual = over(rest, COLS).to(dtype)
    rstd = tl.load(rstd_ptr + row)
    normalizer = Normalizer(tl.full([1], 1.0, dtype), mean, residual, rstd)
    if EPS is not None:
        if is_extraordinary(rstd_ptr, row):
            _, normalizer = merged_statistics(
                *(largest_ptr, sum_ptr, rest_ptr, squares_ptr, row, dtype),
                *(COLS, EPS, CENTERED, CHUNKS, MOST),
            )
    store_normalizer(normalizer_ptr, normalizer, rows, row, row < rows)


@triton.jit
def xhat_and_g(
    x_ptr,
    dy_ptr,
    weight_ptr,
    normalizer,
    place,
    x_outer_stride,
    dy_outer_stride,
    COLS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    VECTOR: tl.constexpr,
    dtype: tl.constexpr,
):
    """Return a chunk of xhat, the chunk of g = dy * weight times 2^-exponent, and the exponent."""
    x = load_tile(x_ptr, place, x_outer_stride, 1, False, VECTOR, dtype)
    dy = load_tile(dy_ptr, place, dy_outer_stride, 1, False, VECTOR, dtype)
    weight = load_parameter(
        weight_ptr, place.cols, HAS_WEIGHT, 1.0, ZERO_CENTERED, COLS, VECTOR, dtype
    )
    xhat = normalized(x, normalizer, CENTERED)
    xhat = tl.where(place.inside, xhat, 0.0)  # the padding lanes may have overflowed
    largest = largest_of_rows(dy)
    dy_exponent = exponent_of(largest)
    weight_exponent = exponent_of(largest_of_rows(weight))
    dy_scale = finite_power(dy_exponent, largest)
    weight_scale = power_of_two(-weight_exponent, dtype)
    g = (dy * dy_scale[:, None, None]) * (weight * weight_scale[:, None, None])
    return xhat, g, dy_exponent + weight_exponent


@kernel
def wide_gradient_sums(
    x_ptr,
    dy_ptr,
    weight_ptr,
    normalizer_ptr,
    exponent_ptr,
    sum_g_ptr,
    sum_g_xhat_ptr,
    rows: tl.int64,
    x_outer_stride: tl.int64,
    dy_outer_stride: tl.int64,
    COLS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNKS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Store a chunk's sums of g and g * xhat, g times 2^-exponent, and the exponent."""
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    place = place_of_chunk(program, COLS, CHUNKS, HIGH, LOW)
    normalizer = load_normalizer(normalizer_ptr, rows, place.row, place.live)
    xhat, g, exponent = xhat_and_g(
        *(x_ptr, dy_ptr, weight_ptr, normalizer, place, x_outer_stride, dy_outer_stride),
        *(COLS, CENTERED, HAS_WEIGHT, ZERO_CENTERED, VECTOR, dtype),
    )
    at = place.within + program
    tl.store(exponent_ptr + at, exponent)
    tl.store(sum_g_xhat_ptr + at, row_sums(g * xhat, True, VECTOR))
    if CENTERED:
        tl.store(sum_g_ptr + at, row_sums(g, True, VECTOR))


@kernel
def wide_dx(
    x_ptr,
    dy_ptr,
    weight_ptr,
    dx_ptr,
    normalizer_ptr,
    exponent_ptr,
    sum_g_ptr,
    sum_g_xhat_ptr,
    rows: tl.int64,
    x_outer_stride: tl.int64,
    dy_outer_stride: tl.int64,
    COLS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNKS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    MOST: tl.constexpr,
):
    """Write dx of a chunk; contiguous."""
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    place = place_of_chunk(program, COLS, CHUNKS, HIGH, LOW)
    normalizer = load_normalizer(normalizer_ptr, rows, place.row, place.live)
    xhat, g, own_exponent = xhat_and_g(
        *(x_ptr, dy_ptr, weight_ptr, normalizer, place, x_outer_stride, dy_outer_stride),
        *(COLS, CENTERED, HAS_WEIGHT, ZERO_CENTERED, VECTOR, dtype),
    )

    # the row's sums, and g, times 2^-exponent, the largest of the chunks' exponents
    exponents = of_all_chunks(exponent_ptr, place.row, -100000, CHUNKS, MOST)
    exponent = tl.max(exponents, 1)
    shift = power_of_two(tl.maximum(exponents - exponent[:, None], -1000), tl.float64)
    dx = g * power_of_two(tl.maximum(own_exponent - exponent, -126), dtype)[:, None, None]
    parts = of_all_chunks(sum_g_xhat_ptr, place.row, 0.0, CHUNKS, MOST)
    mean_g_xhat = over(tl.sum(parts * shift, 1), COLS).to(dtype)
    if CENTERED:
        parts = of_all_chunks(sum_g_ptr, place.row, 0.0, CHUNKS, MOST)
        dx -= over(tl.sum(parts * shift, 1), COLS).to(dtype)[:, None, None]
    dx = tl.fma(-xhat, mean_g_xhat[:, None, None], dx) * normalizer.rstd[:, None, None]
    # the scale of x is a power of two
    dx = times_power_of_two(dx, exponent + exponent_of(normalizer.scale))
    store_tile(dx_ptr, dx, place, COLS, 1, False, VECTOR)
