"""Forward: y and the statistics of a tile of rows, each read from memory once."""

import triton
import triton.language as tl

from layernorm.triton.rows import (
    any_row,
    cols_of_tile,
    is_ordinary_total,
    load_parameter,
    moments,
    normalized,
    place_of_rows,
    pointers_to,
    power_of_two,
    rstd_of,
    scaled_statistics,
)


@triton.jit
def scale_and_shift(xhat, weight, bias, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Return xhat * weight + bias, with those there are."""
    if HAS_WEIGHT:
        if HAS_BIAS:
            return tl.fma(xhat, weight, bias)
        else:
            return xhat * weight
    elif HAS_BIAS:
        return xhat + bias
    else:
        return xhat


@triton.jit
def store_statistics(
    mean_ptr,
    rstd_ptr,
    residual_ptr,
    row,
    live,
    exponent,
    mean,
    residual,
    rstd,
    CENTERED: tl.constexpr,
):
    """Store the statistics of rows from those of the rows times 2^-exponent."""
    wide = rstd.to(tl.float64) * power_of_two(-exponent, tl.float64)
    tl.store(rstd_ptr + row, wide.to(rstd.dtype), mask=live)
    if CENTERED:
        back = power_of_two(exponent, mean.dtype)
        tl.store(mean_ptr + row, mean * back, mask=live)
        tl.store(residual_ptr + row, residual * back, mask=live)


# None of these decides what is compiled: no new kernel for another batch, slice or alignment.
UNSPECIALIZED = (
    *("rows", "inner", "x_outer_stride", "x_col_stride", "y_outer_stride", "y_col_stride"),
    *("x_ptr", "weight_ptr", "bias_ptr", "y_ptr", "mean_ptr", "rstd_ptr", "residual_ptr"),
)


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=UNSPECIALIZED)
def forward(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    residual_ptr,
    rows: tl.int64,
    inner: tl.int64,
    x_outer_stride: tl.int64,
    x_col_stride: tl.int64,
    y_outer_stride: tl.int64,
    y_col_stride: tl.int64,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    SAVE: tl.constexpr,
    STRIDED: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    GROUP_X: tl.constexpr,
    LATE_PARAMETERS: tl.constexpr,
):
    """Write y of one tile, and (SAVE) mean, rstd and residual.

    Array element (o, c, i) is at o * outer_stride + c * col_stride + i; row o * inner + i.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    tile = tl.program_id(0).to(tl.int64)
    row, outer, within, live = place_of_rows(tile, rows, inner, ROWS, STRIDED)
    cols = cols_of_tile(HIGH, LOW)
    inside = live[:, None, None] & (cols < COLS)[None, :, :]
    x_at = pointers_to(x_ptr, outer, within, x_outer_stride, x_col_stride, cols, STRIDED, VECTOR)
    x = tl.load(x_at, mask=inside, other=0.0).to(dtype)
    weight = 1.0
    bias = 0.0
    if not LATE_PARAMETERS:
        if HAS_WEIGHT:
            weight = load_parameter(weight_ptr, cols, COLS, VECTOR, ZERO_CENTERED, dtype)
        if HAS_BIAS:
            bias = load_parameter(bias_ptr, cols, COLS, VECTOR, False, dtype)

    mean, residual, variance = moments(x, inside, COLS, GROUP_X, VECTOR, CENTERED)
    total = variance + EPS
    rstd = rstd_of(total, dtype)
    scale = tl.full([ROWS], 1.0, dtype)
    exponent = tl.zeros([ROWS], tl.int32)
    again = live & (is_ordinary_total(total, dtype) == 0)
    if any_row(again):
        new_exponent, new_scale, new_mean, new_residual, new_rstd = scaled_statistics(
            x, inside, EPS, COLS, GROUP_X, VECTOR, CENTERED
        )
        exponent = tl.where(again, new_exponent, exponent)
        scale = tl.where(again, new_scale, scale)
        mean = tl.where(again, new_mean, mean)
        residual = tl.where(again, new_residual, residual)
        rstd = tl.where(again, new_rstd, rstd)

    if LATE_PARAMETERS:
        if HAS_WEIGHT:
            weight = load_parameter(weight_ptr, cols, COLS, VECTOR, ZERO_CENTERED, dtype)
        if HAS_BIAS:
            bias = load_parameter(bias_ptr, cols, COLS, VECTOR, False, dtype)
    y = normalized(x, scale, mean, residual, rstd, CENTERED)
    y = scale_and_shift(y, weight, bias, HAS_WEIGHT, HAS_BIAS)
    y_at = pointers_to(y_ptr, outer, within, y_outer_stride, y_col_stride, cols, STRIDED, VECTOR)
    tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=inside)
    if SAVE:
        store_statistics(
            *(mean_ptr, rstd_ptr, residual_ptr, row, live, exponent),
            *(mean, residual, rstd, CENTERED),
        )
