"""Backward: dx of tiles of rows, and what each program adds to dweight and dbias on its way.

dweight and dbias are summed in float64 (in pairs of float64 for float64): no sum of float32 terms
overflows there, and no product underflows. `sums.py` adds up what the programs leave.
"""

import triton
import triton.language as tl

from layernorm.triton.rows import (
    any_row,
    are_ordinary_sums,
    cols_of_tile,
    exponent_of,
    finite_power,
    is_ordinary_rstd,
    largest_of_rows,
    load_parameter,
    normalized,
    over,
    place_of_rows,
    pointers_to,
    power_of_two,
    row_sums,
    scaled_statistics,
)


@triton.jit
def half_powers(exponent, dtype: tl.constexpr):
    """Return two powers of two with the product 2^exponent, or one as good for a finite number."""
    most: tl.constexpr = 2000 if dtype == tl.float64 else 250
    exponent = tl.minimum(tl.maximum(exponent, -most), most)
    half = exponent >> 1
    return power_of_two(half, dtype), power_of_two(exponent - half, dtype)


@triton.jit
def fold_rows(v, ROWS: tl.constexpr, KEPT: tl.constexpr):
    """Add up the rows that the same threads have."""
    if ROWS == KEPT:
        return v
    elif KEPT == 1:
        return tl.sum(v, 0)[None, :, :]
    else:
        return tl.sum(tl.reshape(v, (ROWS // KEPT, KEPT, v.shape[1], v.shape[2])), 0)


@triton.jit
def add_terms(
    high,
    low,
    first,
    second,
    ROWS: tl.constexpr,
    KEPT: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """Add the column sums of first * second (PRODUCT) or of first to high + low."""
    wide = first.to(tl.float64)
    if first.dtype != tl.float64:
        if PRODUCT:
            if ROWS == KEPT:
                return tl.fma(wide, second.to(tl.float64), high), low
            else:
                wide = wide * second.to(tl.float64)
        return high + fold_rows(wide, ROWS, KEPT), low
    else:
        if PRODUCT:
            product = wide * second
            low += fold_rows(tl.fma(wide, second, -product), ROWS, KEPT)
            wide = product
        wide = fold_rows(wide, ROWS, KEPT)
        total = high + wide
        part = total - high
        low += (high - (total - part)) + (wide - part)
        return total, low


UNSPECIALIZED = (
    *("rows", "inner", "tiles", "programs"),
    *("x_outer_stride", "x_col_stride", "dy_outer_stride", "dy_col_stride"),
    *("dx_outer_stride", "dx_col_stride"),
    *("x_ptr", "dy_ptr", "weight_ptr", "mean_ptr", "rstd_ptr", "residual_ptr", "dx_ptr"),
    *("dweight_ptr", "dbias_ptr", "normalizer_ptr"),
)


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=UNSPECIALIZED)
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

    The sums go to row program_id of (programs, COLS) float64. KEEP_NORMALIZER: what turns x into
    xhat goes to (4, rows): scale, mean, residual, rstd. EPS None: the statistics are used as given,
    whatever they are.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    cols = cols_of_tile(HIGH, LOW)
    weight = tl.full([1, HIGH, LOW], 1.0, dtype)
    if HAS_WEIGHT:
        weight = load_parameter(weight_ptr, cols, COLS, VECTOR, ZERO_CENTERED, dtype)
    dweight = tl.zeros([KEPT, HIGH, LOW], tl.float64)
    dbias = tl.zeros([KEPT, HIGH, LOW], tl.float64)
    if dtype == tl.float64:
        dweight_low = tl.zeros([KEPT, HIGH, LOW], tl.float64)
        dbias_low = tl.zeros([KEPT, HIGH, LOW], tl.float64)
    else:  # not used
        dweight_low = tl.zeros([1], tl.float64)
        dbias_low = tl.zeros([1], tl.float64)

    for tile in range(program, tiles, programs):
        row, outer, within, live = place_of_rows(tile, rows, inner, ROWS, STRIDED)
        inside = live[:, None, None] & (cols < COLS)[None, :, :]
        x_at = pointers_to(
            x_ptr, outer, within, x_outer_stride, x_col_stride, cols, STRIDED, VECTOR
        )
        dy_at = pointers_to(
            dy_ptr, outer, within, dy_outer_stride, dy_col_stride, cols, STRIDED, VECTOR
        )
        x = tl.load(x_at, mask=inside, other=0.0).to(dtype)
        dy = tl.load(dy_at, mask=inside, other=0.0).to(dtype)
        rstd = tl.load(rstd_ptr + row, mask=live, other=1.0)
        mean = tl.zeros([ROWS], dtype)
        residual = tl.zeros([ROWS], dtype)
        if CENTERED:
            mean = tl.load(mean_ptr + row, mask=live, other=0.0)
            if HAS_RESIDUAL:
                residual = tl.load(residual_ptr + row, mask=live, other=0.0)
            else:
                rest = tl.where(inside, x - mean[:, None, None], 0.0)
                rest = over(row_sums(rest, GROUP_X, VECTOR), COLS)
                residual = rest.to(dtype)
        scale = tl.full([ROWS], 1.0, dtype)
        exponent = tl.zeros([ROWS], tl.int32)
        if EPS is not None:
            again = is_ordinary_rstd(rstd) == 0
            if any_row(again):
                new_exponent, new_scale, new_mean, new_residual, new_rstd = scaled_statistics(
                    x, inside, EPS, COLS, GROUP_X, VECTOR, CENTERED
                )
                exponent = tl.where(again, new_exponent, exponent)
                scale = tl.where(again, new_scale, scale)
                mean = tl.where(again, new_mean, mean)
                residual = tl.where(again, new_residual, residual)
                rstd = tl.where(again, new_rstd, rstd)
        if KEEP_NORMALIZER:
            tl.store(normalizer_ptr + row, scale, mask=live)
            tl.store(normalizer_ptr + rows + row, mean, mask=live)
            tl.store(normalizer_ptr + 2 * rows + row, residual, mask=live)
            tl.store(normalizer_ptr + 3 * rows + row, rstd, mask=live)

        xhat = normalized(x, scale, mean, residual, rstd, CENTERED)
        if COLS != HIGH * LOW:  # the padding lanes may have overflowed
            xhat = tl.where(inside, xhat, 0.0)
        if NEED_DWEIGHT:
            dweight, dweight_low = add_terms(dweight, dweight_low, dy, xhat, ROWS, KEPT, True)
        if NEED_DBIAS:
            dbias, dbias_low = add_terms(dbias, dbias_low, dy, dy, ROWS, KEPT, False)
        if NEED_DX:
            g = dy * weight
            sum_g_xhat = row_sums(g * xhat, True, VECTOR)
            sum_g = sum_g_xhat
            if CENTERED:
                sum_g = row_sums(g, True, VECTOR)
            # where sums left the range, and where x was scaled: powers of two around the rest
            dy_scale = tl.full([ROWS], 1.0, dtype)
            weight_scale = tl.full([ROWS], 1.0, dtype)
            back = tl.zeros([ROWS], tl.int32)
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
                new_sum = row_sums(g * xhat, True, VECTOR)
                sum_g_xhat = tl.where(again, new_sum, sum_g_xhat)
                if CENTERED:
                    new_sum = row_sums(g, True, VECTOR)
                    sum_g = tl.where(again, new_sum, sum_g)
            first, second = half_powers(back, dtype)
            dx = (dy * dy_scale[:, None, None]) * (weight * weight_scale[:, None, None])
            mean_g_xhat = over(sum_g_xhat, COLS).to(dtype)
            if CENTERED:
                dx -= over(sum_g, COLS).to(dtype)[:, None, None]
            dx = tl.fma(-xhat, mean_g_xhat[:, None, None], dx) * rstd[:, None, None]
            dx = dx * first[:, None, None] * second[:, None, None]
            dx_at = pointers_to(
                dx_ptr, outer, within, dx_outer_stride, dx_col_stride, cols, STRIDED, VECTOR
            )
            tl.store(dx_at, dx.to(dx_ptr.dtype.element_ty), mask=inside)

    if NEED_DWEIGHT:
        if dtype == tl.float64:
            dweight += dweight_low
        tl.store(dweight_ptr + program * COLS + cols, tl.sum(dweight, 0), mask=cols < COLS)
    if NEED_DBIAS:
        if dtype == tl.float64:
            dbias += dbias_low
        tl.store(dbias_ptr + program * COLS + cols, tl.sum(dbias, 0), mask=cols < COLS)
