"""Forward: y and the statistics of a tile of rows of x, each read once."""

import triton
import triton.language as tl

from layernorm.triton.gates import times_activation
from layernorm.triton.kernel import kernel
from layernorm.triton.quantized import quantize_tile
from layernorm.triton.rows import (
    Normalizer,
    is_ordinary_radicand,
    moments,
    normalized,
    power_of_two,
    recompute_normalizer,
    rstd_of,
)
from layernorm.triton.tiles import (
    cols_of_tile,
    index_of_tile,
    load_parameter,
    load_rows,
    member_of_tile,
    store_tile,
)


@triton.jit
def load_parameters(
    weight_ptr,
    bias_ptr,
    member,
    cols,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    COLS: tl.constexpr,
    VECTOR: tl.constexpr,
    dtype: tl.constexpr,
):
    """Load weight and bias of a member as tiles of one row."""
    weight = load_parameter(
        weight_ptr, member, cols, HAS_WEIGHT, 1.0, ZERO_CENTERED, COLS, VECTOR, dtype
    )
    bias = load_parameter(bias_ptr, member, cols, HAS_BIAS, 0.0, False, COLS, VECTOR, dtype)
    return weight, bias


@triton.jit
def scale_and_shift(xhat, weight, bias, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Return xhat * weight + bias, without the parameters that are None."""
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
    mean_ptr, rstd_ptr, residual_ptr, row, mask, exponent, normalizer, CENTERED: tl.constexpr
):
    """Store the statistics of rows, given the normalizer of the rows times 2^-exponent."""
    dtype: tl.constexpr = normalizer.rstd.dtype
    rstd = normalizer.rstd.to(tl.float64) * power_of_two(-exponent, tl.float64)
    tl.store(rstd_ptr + row, rstd.to(dtype), mask=mask)
    if CENTERED:
        back = power_of_two(exponent, dtype)
        tl.store(mean_ptr + row, normalizer.mean * back, mask=mask)
        tl.store(residual_ptr + row, normalizer.residual * back, mask=mask)


@kernel
def forward(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    residual_ptr,
    addend_ptr,
    total_ptr,
    gate_ptr,
    scale_ptr,
    rows: tl.int64,
    inner: tl.int64,
    members: tl.int64,
    after: tl.int64,
    x_outer_stride: tl.int64,
    x_member_stride: tl.int64,
    x_after_stride: tl.int64,
    x_col_stride: tl.int64,
    y_outer_stride: tl.int64,
    y_member_stride: tl.int64,
    y_after_stride: tl.int64,
    y_col_stride: tl.int64,
    addend_outer_stride: tl.int64,
    addend_member_stride: tl.int64,
    addend_after_stride: tl.int64,
    addend_col_stride: tl.int64,
    total_outer_stride: tl.int64,
    total_member_stride: tl.int64,
    total_after_stride: tl.int64,
    total_col_stride: tl.int64,
    gate_outer_stride: tl.int64,
    gate_member_stride: tl.int64,
    gate_after_stride: tl.int64,
    gate_col_stride: tl.int64,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    SAVE: tl.constexpr,
    ADDEND: tl.constexpr,
    GATE_X: tl.constexpr,
    GATE_Y: tl.constexpr,
    QUANTIZED: tl.constexpr,
    GIVEN_SCALE: tl.constexpr,
    STRIDED: tl.constexpr,
    OUTER_AXES: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    GROUP_X: tl.constexpr,
    LATE_PARAMETERS: tl.constexpr,
):
    """Write y of one tile and, if SAVE, its mean, rstd and residual.

    ADDEND: they are those of total = x + addend, which is written too. It has strides of its own,
    though they are y's: the addresses of both would else be computed at once, and spill.
    GATE_X, GATE_Y: x or y is multiplied by act(gate); not beside an addend. QUANTIZED: q of y is
    written in the place of y, and the rows' scales, unless GIVEN_SCALE: it is the scale of all.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    LOW_FIRST: tl.constexpr = VECTOR or STRIDED
    tile = tl.program_id(0).to(tl.int64)
    cols = cols_of_tile(HIGH, LOW)
    sizes = rows, inner, members, after
    x_strides = x_outer_stride, x_member_stride, x_after_stride, x_col_stride
    y_strides = y_outer_stride, y_member_stride, y_after_stride, y_col_stride
    addend_strides = (
        addend_outer_stride,
        addend_member_stride,
        addend_after_stride,
        addend_col_stride,
    )
    total_strides = total_outer_stride, total_member_stride, total_after_stride, total_col_stride
    gate_strides = gate_outer_stride, gate_member_stride, gate_after_stride, gate_col_stride
    member, tile = member_of_tile(tile, sizes, ROWS, STRIDED, OUTER_AXES)
    index = index_of_tile(member, tile, sizes, cols, COLS, ROWS, STRIDED, OUTER_AXES)
    if not LATE_PARAMETERS:
        weight, bias = load_parameters(
            *(weight_ptr, bias_ptr, member, cols, HAS_WEIGHT, HAS_BIAS, ZERO_CENTERED),
            *(COLS, VECTOR, dtype),
        )
    x = load_rows(
        *(x_ptr, addend_ptr, total_ptr, index, x_strides, addend_strides, total_strides),
        *(ADDEND, STRIDED, VECTOR, dtype),
    )
    x = times_activation(x, gate_ptr, index, gate_strides, GATE_X, STRIDED, VECTOR, dtype)

    mean, residual, variance = moments(x, index.mask, COLS, GROUP_X, LOW_FIRST, CENTERED)
    radicand = variance + EPS
    normalizer = Normalizer(tl.full([ROWS], 1.0, dtype), mean, residual, rstd_of(radicand, dtype))
    out_of_range = index.row_mask & (is_ordinary_radicand(radicand, dtype) == 0)
    exponent, normalizer = recompute_normalizer(
        x, index.mask, out_of_range, normalizer, EPS, COLS, GROUP_X, LOW_FIRST, CENTERED
    )

    if LATE_PARAMETERS:
        weight, bias = load_parameters(
            *(weight_ptr, bias_ptr, member, cols, HAS_WEIGHT, HAS_BIAS, ZERO_CENTERED),
            *(COLS, VECTOR, dtype),
        )
    xhat = normalized(x, normalizer, CENTERED)
    y = scale_and_shift(xhat, weight, bias, HAS_WEIGHT, HAS_BIAS)
    y = times_activation(y, gate_ptr, index, gate_strides, GATE_Y, STRIDED, VECTOR, dtype)
    if QUANTIZED is None:
        store_tile(y_ptr, y, index, y_strides, STRIDED, VECTOR)
    else:
        quantize_tile(
            *(y_ptr, y.to(x_ptr.dtype.element_ty).to(dtype), scale_ptr, index, y_strides),
            *(QUANTIZED, GIVEN_SCALE, COLS, STRIDED, VECTOR),
        )
    if SAVE:
        store_statistics(
            *(mean_ptr, rstd_ptr, residual_ptr, index.row, index.row_mask),
            *(exponent, normalizer, CENTERED),
        )
