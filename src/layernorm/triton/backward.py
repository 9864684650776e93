"""Backward: dx and dgate of tiles of rows, and partial sums of dweight and dbias."""

import triton
import triton.language as tl

from layernorm.triton.forward import scale_and_shift
from layernorm.triton.gates import product_gradients, times_activation
from layernorm.triton.kernel import kernel
from layernorm.triton.rows import (
    Normalizer,
    any_row,
    are_ordinary_sums,
    exponent_of,
    finite_power,
    is_ordinary_rstd,
    largest_of_rows,
    normalized,
    over,
    power_of_two,
    recompute_normalizer,
    rest_of_one,
    row_sums,
    store_normalizer,
)
from layernorm.triton.sums import add_products, add_values, no_sums, store_sums
from layernorm.triton.tiles import (
    cols_of_tile,
    index_of_tile,
    load_parameter,
    load_tile,
    member_of,
    store_tile,
)


@triton.jit
def times_power_of_two(v, exponent):
    """Return v times 2^exponent, in two steps: 2^exponent may leave the range of the type."""
    most: tl.constexpr = 2000 if v.dtype == tl.float64 else 250
    exponent = tl.minimum(tl.maximum(exponent, -most), most)
    half = exponent >> 1
    first = power_of_two(half, v.dtype)
    second = power_of_two(exponent - half, v.dtype)
    return v * first[:, None, None] * second[:, None, None]


@triton.jit
def saved_normalizer(
    x,
    index,
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
    """Return the normalizer of the saved statistics; recompute a residual that was not saved."""
    zeros = tl.zeros(index.row.shape, dtype)
    mean = zeros
    residual = zeros
    if CENTERED:
        mean = tl.load(mean_ptr + index.row, mask=index.row_mask, other=0.0)
        if HAS_RESIDUAL:
            residual = tl.load(residual_ptr + index.row, mask=index.row_mask, other=0.0)
        else:
            rest = tl.where(index.mask, x - mean[:, None, None], 0.0)
            residual = over(row_sums(rest, GROUP_X, LOW_FIRST), COLS).to(dtype)
    rstd = tl.load(rstd_ptr + index.row, mask=index.row_mask, other=1.0)
    return Normalizer(tl.full(index.row.shape, 1.0, dtype), mean, residual, rstd)


@triton.jit
def gradient_of_rows(
    dy,
    weight,
    xhat,
    normalizer,
    exponent,
    row_mask,
    EPS: tl.constexpr,
    COLS: tl.constexpr,
    LOW_FIRST: tl.constexpr,
    CENTERED: tl.constexpr,
):
    """Return dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) / 2^exponent, with g = dy * weight.

    The normalizer's scale is 2^-exponent. Where x was scaled or the sums leave their range, dy and
    weight are scaled by powers of two too, and dx is scaled back. EPS None: it is not known.
    """
    dtype: tl.constexpr = dy.dtype
    rstd = normalizer.rstd
    g = dy * weight
    sum_g_xhat = row_sums(g * xhat, True, LOW_FIRST)
    sum_g = sum_g_xhat
    if CENTERED:
        sum_g = row_sums(g, True, LOW_FIRST)
    ones = tl.full(rstd.shape, 1.0, dtype)
    dy_scale = ones
    weight_scale = ones
    back = tl.zeros(rstd.shape, tl.int32)
    out_of_range = row_mask & (are_ordinary_sums(sum_g, sum_g_xhat, dtype) == 0)
    scaled = out_of_range | (exponent != 0)
    if any_row(scaled):
        largest_dy = largest_of_rows(dy)
        dy_exponent = tl.where(scaled, exponent_of(largest_dy), 0)
        dy_scale = tl.where(scaled, finite_power(dy_exponent, largest_dy), 1.0)
        weight_exponent = exponent_of(tl.max(largest_of_rows(weight), 0))
        weight_scale = tl.where(scaled, power_of_two(-weight_exponent, dtype), 1.0)
        back = tl.where(scaled, dy_exponent + weight_exponent - exponent, 0)
        g = (dy * dy_scale[:, None, None]) * (weight * weight_scale[:, None, None])
        sum_g_xhat = tl.where(scaled, row_sums(g * xhat, True, LOW_FIRST), sum_g_xhat)
        if CENTERED:
            sum_g = tl.where(scaled, row_sums(g, True, LOW_FIRST), sum_g)
    dx = (dy * dy_scale[:, None, None]) * (weight * weight_scale[:, None, None])
    mean_g_xhat = over(sum_g_xhat, COLS).to(dtype)
    if CENTERED:
        dx -= over(sum_g, COLS).to(dtype)[:, None, None]
    dx = tl.fma(-xhat, mean_g_xhat[:, None, None], dx)
    if EPS is not None:
        # dx may be small by cancellation: what its roundings have along xhat is projected out too
        along = over(row_sums(dx * xhat, True, LOW_FIRST), COLS)
        along -= mean_g_xhat * rest_of_one(normalizer, EPS)
        dx = tl.fma(-xhat, along.to(dtype)[:, None, None], dx)
    dx *= rstd[:, None, None]
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
    dtotal_ptr,
    bias_ptr,
    gate_ptr,
    dgate_ptr,
    rows: tl.int64,
    inner: tl.int64,
    members: tl.int64,
    after: tl.int64,
    tiles: tl.int64,
    programs: tl.int64,
    x_outer_stride: tl.int64,
    x_member_stride: tl.int64,
    x_after_stride: tl.int64,
    x_col_stride: tl.int64,
    dy_outer_stride: tl.int64,
    dy_member_stride: tl.int64,
    dy_after_stride: tl.int64,
    dy_col_stride: tl.int64,
    dx_outer_stride: tl.int64,
    dx_member_stride: tl.int64,
    dx_after_stride: tl.int64,
    dx_col_stride: tl.int64,
    dtotal_outer_stride: tl.int64,
    dtotal_member_stride: tl.int64,
    dtotal_after_stride: tl.int64,
    dtotal_col_stride: tl.int64,
    gate_outer_stride: tl.int64,
    gate_member_stride: tl.int64,
    gate_after_stride: tl.int64,
    gate_col_stride: tl.int64,
    dgate_outer_stride: tl.int64,
    dgate_member_stride: tl.int64,
    dgate_after_stride: tl.int64,
    dgate_col_stride: tl.int64,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    NEED_DX: tl.constexpr,
    NEED_DWEIGHT: tl.constexpr,
    NEED_DBIAS: tl.constexpr,
    NEED_DGATE: tl.constexpr,
    DTOTAL: tl.constexpr,
    GATE_X: tl.constexpr,
    GATE_Y: tl.constexpr,
    STORE_NORMALIZER: tl.constexpr,
    STRIDED: tl.constexpr,
    OUTER_AXES: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    SUM_ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    GROUP_X: tl.constexpr,
):
    """Write dx of every `programs`-th tile, and this program's partial sums of dweight and dbias.

    Each member has so many `tiles` and `programs`. The partial sums go to row program_id of an
    array (members * programs, COLS) of float64, or, with one program to a member, to dweight and
    dbias themselves. DTOTAL: dtotal is added to dx before it is rounded. GATE_X, GATE_Y: x or y was
    multiplied by act(gate). For dgate with GATE_Y, bias is needed. STORE_NORMALIZER: the normalizer
    goes to an array (4, rows). EPS None: it is not known, and rows whose rstd is out of range use
    it as it was saved.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    LOW_FIRST: tl.constexpr = VECTOR or STRIDED
    program = tl.program_id(0).to(tl.int64)
    sizes = rows, inner, members, after
    x_strides = x_outer_stride, x_member_stride, x_after_stride, x_col_stride
    dy_strides = dy_outer_stride, dy_member_stride, dy_after_stride, dy_col_stride
    dx_strides = dx_outer_stride, dx_member_stride, dx_after_stride, dx_col_stride
    dtotal_strides = (
        dtotal_outer_stride,
        dtotal_member_stride,
        dtotal_after_stride,
        dtotal_col_stride,
    )
    gate_strides = gate_outer_stride, gate_member_stride, gate_after_stride, gate_col_stride
    dgate_strides = (
        dgate_outer_stride,
        dgate_member_stride,
        dgate_after_stride,
        dgate_col_stride,
    )
    member, first = member_of(program, programs, OUTER_AXES)
    cols = cols_of_tile(HIGH, LOW)
    weight = load_parameter(
        weight_ptr, member, cols, HAS_WEIGHT, 1.0, ZERO_CENTERED, COLS, VECTOR, dtype
    )
    dweight = no_sums(SUM_ROWS, HIGH, LOW, dtype)
    dbias = no_sums(SUM_ROWS, HIGH, LOW, dtype)

    for tile in range(first, tiles, programs):
        index = index_of_tile(member, tile, sizes, cols, COLS, ROWS, STRIDED, OUTER_AXES)
        x = load_tile(x_ptr, index, x_strides, STRIDED, VECTOR, dtype)
        x = times_activation(x, gate_ptr, index, gate_strides, GATE_X, STRIDED, VECTOR, dtype)
        dy = load_tile(dy_ptr, index, dy_strides, STRIDED, VECTOR, dtype)
        normalizer = saved_normalizer(
            *(x, index, mean_ptr, rstd_ptr, residual_ptr),
            *(CENTERED, HAS_RESIDUAL, COLS, GROUP_X, LOW_FIRST, dtype),
        )
        exponent = tl.zeros([ROWS], tl.int32)
        if EPS is not None:
            out_of_range = is_ordinary_rstd(normalizer.rstd) == 0
            exponent, normalizer = recompute_normalizer(
                x, index.mask, out_of_range, normalizer, EPS, COLS, GROUP_X, LOW_FIRST, CENTERED
            )
        if STORE_NORMALIZER:
            store_normalizer(normalizer_ptr, normalizer, rows, index.row, index.row_mask)

        xhat = normalized(x, normalizer, CENTERED)
        if COLS != HIGH * LOW:  # padding lanes may have overflowed
            xhat = tl.where(index.mask, xhat, 0.0)
        if GATE_Y is not None:
            bias = load_parameter(bias_ptr, member, cols, HAS_BIAS, 0.0, False, COLS, VECTOR, dtype)
            n = scale_and_shift(xhat, weight, bias, HAS_WEIGHT, HAS_BIAS)
            dy, dgate = product_gradients(
                dy, n, gate_ptr, index, gate_strides, GATE_Y, STRIDED, VECTOR, dtype, False
            )
            if NEED_DGATE:
                store_tile(dgate_ptr, dgate, index, dgate_strides, STRIDED, VECTOR)
        if NEED_DWEIGHT:
            dweight = add_products(dweight, dy, xhat, ROWS, SUM_ROWS)
        if NEED_DBIAS:
            dbias = add_values(dbias, dy, ROWS, SUM_ROWS)
        if NEED_DX or (NEED_DGATE and GATE_X is not None):
            dx = gradient_of_rows(
                dy,
                weight,
                xhat,
                normalizer,
                exponent,
                index.row_mask,
                EPS,
                COLS,
                LOW_FIRST,
                CENTERED,
            )
            if DTOTAL:
                dx += load_tile(dtotal_ptr, index, dtotal_strides, STRIDED, VECTOR, dtype)
            if GATE_X is not None:
                x = load_tile(x_ptr, index, x_strides, STRIDED, VECTOR, dtype, True)
                dx, dgate = product_gradients(
                    dx, x, gate_ptr, index, gate_strides, GATE_X, STRIDED, VECTOR, dtype, True
                )
                if NEED_DGATE:
                    store_tile(dgate_ptr, dgate, index, dgate_strides, STRIDED, VECTOR)
            if NEED_DX:
                store_tile(dx_ptr, dx, index, dx_strides, STRIDED, VECTOR)

    if NEED_DWEIGHT:
        store_sums(dweight_ptr, dweight, program, cols, COLS, dtype)
    if NEED_DBIAS:
        store_sums(dbias_ptr, dbias, program, cols, COLS, dtype)
