"""Backward: dx of tiles of rows, and what each program adds to dweight and dbias on its way."""

import triton
import triton.language as tl

from layernorm.triton.kernel import kernel
from layernorm.triton.rows import (
    Normalizer,
    any_row,
    are_ordinary_sums,
    exponent_of,
    finite_power,
    is_ordinary_rstd,
    largest_of_rows,
    measured_again,
    normalized,
    over,
    power_of_two,
    row_sums,
    store_normalizer,
)
from layernorm.triton.sums import add_products, add_values, no_sums, store_sums
from layernorm.triton.tiles import (
    cols_of_tile,
    load_parameter,
    load_tile,
    place_of_tile,
    store_tile,
)


@triton.jit
def times_power_of_two(v, exponent):
    """Return the rows of v times 2^exponent, in two steps: the power may leave the type's range."""
    most: tl.constexpr = 2000 if v.dtype == tl.float64 else 250
    exponent = tl.minimum(tl.maximum(exponent, -most), most)
    half = exponent >> 1
    first = power_of_two(half, v.dtype)
    second = power_of_two(exponent - half, v.dtype)
    return v * first[:, None, None] * second[:, None, None]


@triton.jit
def saved_normalizer(
    x,
    place,
    mean_ptr,
    rstd_ptr,
    residual_ptr,
    CENTERED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    COLS: tl.constexpr,
    GROUP_X: tl.constexpr,
    LOW_FIRST: tl.constexpr,
    dtype: tl.constexpr,
):
    """Return the normalizer of the saved statistics; a residual not saved is worked out again."""
    zeros = tl.zeros(place.row.shape, dtype)
    mean = zeros
    residual = zeros
    if CENTERED:
        mean = tl.load(mean_ptr + place.row, mask=place.live, other=0.0)
        if HAS_RESIDUAL:
            residual = tl.load(residual_ptr + place.row, mask=place.live, other=0.0)
        else:
            rest = tl.where(place.inside, x - mean[:, None, None], 0.0)
            residual = over(row_sums(rest, GROUP_X, LOW_FIRST), COLS).to(dtype)
    rstd = tl.load(rstd_ptr + place.row, mask=place.live, other=1.0)
    return Normalizer(tl.full(place.row.shape, 1.0, dtype), mean, residual, rstd)


@triton.jit
def gradient_of_rows(
    dy,
    weight,
    xhat,
    rstd,
    exponent,
    live,
    COLS: tl.constexpr,
    LOW_FIRST: tl.constexpr,
    CENTERED: tl.constexpr,
):
    """Return dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) / 2^exponent, with g = dy * weight.

    exponent is that of the scale in the normalizer. Where the sums leave their range, and where x
    was scaled, dy and weight are multiplied by powers of two, and dx by what undoes them.
    """
    dtype: tl.constexpr = dy.dtype
    g = dy * weight
    sum_g_xhat = row_sums(g * xhat, True, LOW_FIRST)
    sum_g = sum_g_xhat
    if CENTERED:
        sum_g = row_sums(g, True, LOW_FIRST)
    ones = tl.full(rstd.shape, 1.0, dtype)
    dy_scale = ones
    weight_scale = ones
    back = tl.zeros(rstd.shape, tl.int32)
    strange = live & (are_ordinary_sums(sum_g, sum_g_xhat, dtype) == 0)
    again = strange | (exponent != 0)
    if any_row(again):
        largest_dy = largest_of_rows(dy)
        dy_exponent = tl.where(again, exponent_of(largest_dy), 0)
        dy_scale = tl.where(again, finite_power(dy_exponent, largest_dy), 1.0)
        weight_exponent = exponent_of(tl.max(largest_of_rows(weight), 0))
        weight_scale = tl.where(again, power_of_two(-weight_exponent, dtype), 1.0)
        back = tl.where(again, dy_exponent + weight_exponent - exponent, 0)
        g = (dy * dy_scale[:, None, None]) * (weight * weight_scale[:, None, None])
        sum_g_xhat = tl.where(again, row_sums(g * xhat, True, LOW_FIRST), sum_g_xhat)
        if CENTERED:
            sum_g = tl.where(again, row_sums(g, True, LOW_FIRST), sum_g)
    dx = (dy * dy_scale[:, None, None]) * (weight * weight_scale[:, None, None])
    mean_g_xhat = over(sum_g_xhat, COLS).to(dtype)
    if CENTERED:
        dx -= over(sum_g, COLS).to(dtype)[:, None, None]
    dx = tl.fma(-xhat, mean_g_xhat[:, None, None], dx) * rstd[:, None, None]
    return times_power_of_two(dx, back)


@kernel
def backward(
    x_ptr,
    dy_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    residual_ptr,
    dx_ptr,
    dweight_ptr,
    dbias_ptr,
    normalizer_ptr,
    rows: tl.int64,
    inner: tl.int64,
    tiles: tl.int64,
    programs: tl.int64,
    x_outer_stride: tl.int64,
    x_col_stride: tl.int64,
    dy_outer_stride: tl.int64,
    dy_col_stride: tl.int64,
    dx_outer_stride: tl.int64,
    dx_col_stride: tl.int64,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    NEED_DX: tl.constexpr,
    NEED_DWEIGHT: tl.constexpr,
    NEED_DBIAS: tl.constexpr,
    KEEP_NORMALIZER: tl.constexpr,
    STRIDED: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    KEPT: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    GROUP_X: tl.constexpr,
):
    """Write dx of every `programs`-th tile, and this program's sums for dweight and dbias.

    The sums go to row program_id of (programs, COLS) float64. KEEP_NORMALIZER: the normalizer goes
    to (4, rows). EPS None: the statistics are used as given, whatever they are.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    LOW_FIRST: tl.constexpr = VECTOR or STRIDED
    program = tl.program_id(0).to(tl.int64)
    cols = cols_of_tile(HIGH, LOW)
    weight = load_parameter(weight_ptr, cols, HAS_WEIGHT, 1.0, ZERO_CENTERED, COLS, VECTOR, dtype)
    dweight = no_sums(KEPT, HIGH, LOW, dtype)
    dbias = no_sums(KEPT, HIGH, LOW, dtype)

    for tile in range(program, tiles, programs):
        place = place_of_tile(tile, rows, inner, cols, COLS, ROWS, STRIDED)
        x = load_tile(x_ptr, place, x_outer_stride, x_col_stride, STRIDED, VECTOR, dtype)
        dy = load_tile(dy_ptr, place, dy_outer_stride, dy_col_stride, STRIDED, VECTOR, dtype)
        normalizer = saved_normalizer(
            *(x, place, mean_ptr, rstd_ptr, residual_ptr),
            *(CENTERED, HAS_RESIDUAL, COLS, GROUP_X, LOW_FIRST, dtype),
        )
        exponent = tl.zeros([ROWS], tl.int32)
        if EPS is not None:
            again = is_ordinary_rstd(normalizer.rstd) == 0
            exponent, normalizer = measured_again(
                x, place.inside, again, normalizer, EPS, COLS, GROUP_X, LOW_FIRST, CENTERED
            )
        if KEEP_NORMALIZER:
            store_normalizer(normalizer_ptr, normalizer, rows, place.row, place.live)

        xhat = normalized(x, normalizer, CENTERED)
        if COLS != HIGH * LOW:  # the padding lanes may have overflowed
            xhat = tl.where(place.inside, xhat, 0.0)
        if NEED_DWEIGHT:
            dweight = add_products(dweight, dy, xhat, ROWS, KEPT)
        if NEED_DBIAS:
            dbias = add_values(dbias, dy, ROWS, KEPT)
        if NEED_DX:
            dx = gradient_of_rows(
                dy, weight, xhat, normalizer.rstd, exponent, place.live, COLS, LOW_FIRST, CENTERED
            )
            store_tile(dx_ptr, dx, place, dx_outer_stride, dx_col_stride, STRIDED, VECTOR)

    if NEED_DWEIGHT:
        store_sums(dweight_ptr, dweight, program, cols, COLS, dtype)
    if NEED_DBIAS:
        store_sums(dbias_ptr, dbias, program, cols, COLS, dtype)
