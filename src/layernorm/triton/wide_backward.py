"""Backward of rows in chunks: the normalizers of the rows, sums for dx, and dx."""

import triton
import triton.language as tl

from layernorm.triton.backward import times_power_of_two
from layernorm.triton.chunks import merged_statistics, of_all_chunks, of_own_chunk
from layernorm.triton.kernel import kernel
from layernorm.triton.rows import (
    Normalizer,
    any_row,
    chosen,
    exponent_of,
    finite_power,
    is_ordinary_rstd,
    largest_of_rows,
    load_normalizer,
    normalized,
    over,
    power_of_two,
    row_sums,
    store_normalizer,
)
from layernorm.triton.tiles import (
    load_parameter,
    load_tile,
    place_of_chunk,
    place_of_tile,
    store_tile,
)


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
    first: tl.int64,
    rows: tl.int64,
    inner: tl.int64,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    STRIDED: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    MOST: tl.constexpr,
):
    """Store the normalizer of a tile's rows in (4, rows). EPS None: the statistics as given."""
    dtype: tl.constexpr = rstd_ptr.dtype.element_ty
    tile = tl.program_id(0).to(tl.int64)
    no_cols = tl.zeros([1, 1], tl.int32)
    place = place_of_tile(first + tile, rows, inner, no_cols, COLS, ROWS, STRIDED)
    mean = tl.zeros([ROWS], dtype)
    residual = tl.zeros([ROWS], dtype)
    if CENTERED:
        mean = tl.load(mean_ptr + place.row, mask=place.live, other=0.0)
        if HAS_RESIDUAL:
            residual = tl.load(residual_ptr + place.row, mask=place.live, other=0.0)
        else:
            rest = tl.sum(of_all_chunks(rest_ptr, tile, 0.0, CHUNKS, ROWS, MOST), 1)
            residual = over(rest, COLS).to(dtype)
    rstd = tl.load(rstd_ptr + place.row, mask=place.live, other=1.0)
    normalizer = Normalizer(tl.full([ROWS], 1.0, dtype), mean, residual, rstd)
    if EPS is not None:
        again = is_ordinary_rstd(rstd) == 0
        if any_row(again):
            _, new = merged_statistics(
                *(largest_ptr, sum_ptr, rest_ptr, squares_ptr, tile, dtype),
                *(COLS, EPS, CENTERED, CHUNKS, ROWS, MOST),
            )
            normalizer = chosen(again, new, normalizer)
    store_normalizer(normalizer_ptr, normalizer, rows, place.row, place.live)


@triton.jit
def xhat_and_g(
    x_ptr,
    dy_ptr,
    weight_ptr,
    normalizer,
    place,
    x_outer_stride,
    x_col_stride,
    dy_outer_stride,
    dy_col_stride,
    COLS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    STRIDED: tl.constexpr,
    VECTOR: tl.constexpr,
    dtype: tl.constexpr,
):
    """Return a chunk of xhat, the chunk of g = dy * weight times 2^-exponent, and exponents."""
    weight = load_parameter(
        weight_ptr, place.cols, HAS_WEIGHT, 1.0, ZERO_CENTERED, COLS, VECTOR, dtype
    )
    x = load_tile(x_ptr, place, x_outer_stride, x_col_stride, STRIDED, VECTOR, dtype)
    dy = load_tile(dy_ptr, place, dy_outer_stride, dy_col_stride, STRIDED, VECTOR, dtype)
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
    first: tl.int64,
    rows: tl.int64,
    inner: tl.int64,
    x_outer_stride: tl.int64,
    x_col_stride: tl.int64,
    dy_outer_stride: tl.int64,
    dy_col_stride: tl.int64,
    COLS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    STRIDED: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Store each row's sums of g and g * xhat in a chunk, g times 2^-exponent, and the exponent."""
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    place = place_of_chunk(first, program, rows, inner, COLS, STRIDED, CHUNKS, ROWS, HIGH, LOW)
    normalizer = load_normalizer(normalizer_ptr, rows, place.row, place.live)
    xhat, g, exponent = xhat_and_g(
        *(x_ptr, dy_ptr, weight_ptr, normalizer, place),
        *(x_outer_stride, x_col_stride, dy_outer_stride, dy_col_stride),
        *(COLS, CENTERED, HAS_WEIGHT, ZERO_CENTERED, STRIDED, VECTOR, dtype),
    )
    tl.store(of_own_chunk(exponent_ptr, program, ROWS), exponent)
    tl.store(
        of_own_chunk(sum_g_xhat_ptr, program, ROWS), row_sums(g * xhat, True, VECTOR or STRIDED)
    )
    if CENTERED:
        tl.store(of_own_chunk(sum_g_ptr, program, ROWS), row_sums(g, True, VECTOR or STRIDED))


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
    first: tl.int64,
    rows: tl.int64,
    inner: tl.int64,
    x_outer_stride: tl.int64,
    x_col_stride: tl.int64,
    dy_outer_stride: tl.int64,
    dy_col_stride: tl.int64,
    dx_outer_stride: tl.int64,
    dx_col_stride: tl.int64,
    COLS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    STRIDED: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    MOST: tl.constexpr,
):
    """Write dx of a chunk."""
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    place = place_of_chunk(first, program, rows, inner, COLS, STRIDED, CHUNKS, ROWS, HIGH, LOW)
    normalizer = load_normalizer(normalizer_ptr, rows, place.row, place.live)
    xhat, g, own_exponent = xhat_and_g(
        *(x_ptr, dy_ptr, weight_ptr, normalizer, place),
        *(x_outer_stride, x_col_stride, dy_outer_stride, dy_col_stride),
        *(COLS, CENTERED, HAS_WEIGHT, ZERO_CENTERED, STRIDED, VECTOR, dtype),
    )

    # the rows' sums, and g, times 2^-exponent, the largest of the chunks' exponents
    tile = program // CHUNKS
    exponents = of_all_chunks(exponent_ptr, tile, -100000, CHUNKS, ROWS, MOST)
    exponent = tl.max(exponents, 1)
    shift = power_of_two(tl.maximum(exponents - exponent[:, None], -1000), tl.float64)
    dx = g * power_of_two(tl.maximum(own_exponent - exponent, -126), dtype)[:, None, None]
    parts = of_all_chunks(sum_g_xhat_ptr, tile, 0.0, CHUNKS, ROWS, MOST)
    mean_g_xhat = over(tl.sum(parts * shift, 1), COLS).to(dtype)
    if CENTERED:
        parts = of_all_chunks(sum_g_ptr, tile, 0.0, CHUNKS, ROWS, MOST)
        dx -= over(tl.sum(parts * shift, 1), COLS).to(dtype)[:, None, None]
    dx = tl.fma(-xhat, mean_g_xhat[:, None, None], dx) * normalizer.rstd[:, None, None]
    # the scale of x is a power of two
    dx = times_power_of_two(dx, exponent + exponent_of(normalizer.scale))
    store_tile(dx_ptr, dx, place, dx_outer_stride, dx_col_stride, STRIDED, VECTOR)
