"""Backward of long rows: the normalizers of the rows, sums of the gradient, dx and dgate."""

import triton
import triton.language as tl

from layernorm.triton.backward import times_power_of_two
from layernorm.triton.forward import load_parameters, scale_and_shift
from layernorm.triton.gates import product_gradients, times_activation
from layernorm.triton.kernel import kernel
from layernorm.triton.long_row_statistics import (
    load_partials,
    mean_of_partials,
    merged_statistics,
    partial_pointers,
)
from layernorm.triton.rows import (
    Normalizer,
    any_row,
    exponent_of,
    finite_power,
    is_ordinary_rstd,
    largest_of_rows,
    load_normalizer,
    normalized,
    over,
    power_of_two,
    rest_of_one,
    row_sums,
    select,
    store_normalizer,
)
from layernorm.triton.tiles import (
    index_of_block,
    index_of_tile,
    load_parameter,
    load_tile,
    member_of_tile,
    store_tile,
)


@kernel
def long_row_normalizer(
    mean_ptr,
    rstd_ptr,
    residual_ptr,
    normalizer_ptr,
    largest_ptr,
    center_ptr,
    rest_ptr,
    squares_ptr,
    first_tile: tl.int64,
    rows: tl.int64,
    inner: tl.int64,
    members: tl.int64,
    after: tl.int64,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    STRIDED: tl.constexpr,
    OUTER_AXES: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED_BLOCKS: tl.constexpr,
):
    """Store the normalizer of a tile's rows in an array (4, rows).

    EPS None: rows whose rstd is out of range use it as it was saved.
    """
    dtype: tl.constexpr = rstd_ptr.dtype.element_ty
    tile = tl.program_id(0).to(tl.int64)
    no_cols = tl.zeros([1, 1], tl.int32)
    sizes = rows, inner, members, after
    member, own = member_of_tile(first_tile + tile, sizes, ROWS, STRIDED, OUTER_AXES)
    index = index_of_tile(member, own, sizes, no_cols, COLS, ROWS, STRIDED, OUTER_AXES)
    mean = tl.zeros([ROWS], dtype)
    residual = tl.zeros([ROWS], dtype)
    if CENTERED:
        mean = tl.load(mean_ptr + index.row, mask=index.row_mask, other=0.0)
        if HAS_RESIDUAL:
            residual = tl.load(residual_ptr + index.row, mask=index.row_mask, other=0.0)
        else:
            rest = mean_of_partials(rest_ptr, tile, COLS, BLOCKS, ROWS, PADDED_BLOCKS)
            residual = rest.to(dtype)
    rstd = tl.load(rstd_ptr + index.row, mask=index.row_mask, other=1.0)
    normalizer = Normalizer(tl.full([ROWS], 1.0, dtype), mean, residual, rstd)
    if EPS is not None:
        out_of_range = is_ordinary_rstd(rstd) == 0
        if any_row(out_of_range):
            _, new = merged_statistics(
                *(largest_ptr, center_ptr, rest_ptr, squares_ptr, tile, dtype),
                *(COLS, EPS, CENTERED, BLOCKS, ROWS, PADDED_BLOCKS),
            )
            normalizer = select(out_of_range, new, normalizer)
    store_normalizer(normalizer_ptr, normalizer, rows, index.row, index.row_mask)


@triton.jit
def gradient_block(
    x_ptr,
    dy_ptr,
    weight_ptr,
    normalizer_ptr,
    gate_ptr,
    first_tile,
    program,
    sizes,
    x_strides,
    dy_strides,
    gate_strides,
    COLS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    GATE_X: tl.constexpr,
    GATE_Y: tl.constexpr,
    STRIDED: tl.constexpr,
    OUTER_AXES: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Return index, normalizer and xhat of a program's block, g times 2^-exponent, and exponent.

    g is dy * weight, and each row has an exponent. GATE_X, GATE_Y: x or dy is multiplied by
    act(gate).
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    index = index_of_block(
        first_tile, program, sizes, COLS, STRIDED, OUTER_AXES, BLOCKS, ROWS, HIGH, LOW
    )
    normalizer = load_normalizer(normalizer_ptr, sizes[0], index.row, index.row_mask)
    weight = load_parameter(
        *(weight_ptr, index.member, index.cols, HAS_WEIGHT, 1.0, ZERO_CENTERED),
        *(COLS, VECTOR, dtype),
    )
    x = load_tile(x_ptr, index, x_strides, STRIDED, VECTOR, dtype)
    x = times_activation(x, gate_ptr, index, gate_strides, GATE_X, STRIDED, VECTOR, dtype)
    dy = load_tile(dy_ptr, index, dy_strides, STRIDED, VECTOR, dtype)
    dy = times_activation(dy, gate_ptr, index, gate_strides, GATE_Y, STRIDED, VECTOR, dtype)
    xhat = normalized(x, normalizer, CENTERED)
    xhat = tl.where(index.mask, xhat, 0.0)  # padding lanes may have overflowed
    largest = largest_of_rows(dy)
    dy_exponent = exponent_of(largest)
    weight_exponent = exponent_of(largest_of_rows(weight))
    dy_scale = finite_power(dy_exponent, largest)
    weight_scale = power_of_two(-weight_exponent, dtype)
    g = (dy * dy_scale[:, None, None]) * (weight * weight_scale[:, None, None])
    return index, normalizer, xhat, g, dy_exponent + weight_exponent


@kernel
def long_row_gradient_sums(
    x_ptr,
    dy_ptr,
    weight_ptr,
    normalizer_ptr,
    exponent_ptr,
    sum_g_ptr,
    sum_g_xhat_ptr,
    sum_squares_ptr,
    gate_ptr,
    first_tile: tl.int64,
    rows: tl.int64,
    inner: tl.int64,
    members: tl.int64,
    after: tl.int64,
    x_outer_stride: tl.int64,
    x_member_stride: tl.int64,
    x_after_stride: tl.int64,
    x_col_stride: tl.int64,
    dy_outer_stride: tl.int64,
    dy_member_stride: tl.int64,
    dy_after_stride: tl.int64,
    dy_col_stride: tl.int64,
    gate_outer_stride: tl.int64,
    gate_member_stride: tl.int64,
    gate_after_stride: tl.int64,
    gate_col_stride: tl.int64,
    COLS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    GATE_X: tl.constexpr,
    GATE_Y: tl.constexpr,
    STRIDED: tl.constexpr,
    OUTER_AXES: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Store the sums of g, g * xhat and xhat^2 of each row in a block, and the exponent of g's."""
    LOW_FIRST: tl.constexpr = VECTOR or STRIDED
    program = tl.program_id(0).to(tl.int64)
    sizes = rows, inner, members, after
    x_strides = x_outer_stride, x_member_stride, x_after_stride, x_col_stride
    dy_strides = dy_outer_stride, dy_member_stride, dy_after_stride, dy_col_stride
    gate_strides = gate_outer_stride, gate_member_stride, gate_after_stride, gate_col_stride
    _, _, xhat, g, exponent = gradient_block(
        *(x_ptr, dy_ptr, weight_ptr, normalizer_ptr, gate_ptr, first_tile, program),
        *(sizes, x_strides, dy_strides, gate_strides, COLS, CENTERED, HAS_WEIGHT, ZERO_CENTERED),
        *(GATE_X, GATE_Y, STRIDED, OUTER_AXES, VECTOR, BLOCKS, ROWS, HIGH, LOW),
    )
    tl.store(partial_pointers(exponent_ptr, program, ROWS), exponent)
    tl.store(partial_pointers(sum_g_xhat_ptr, program, ROWS), row_sums(g * xhat, True, LOW_FIRST))
    squares = row_sums(xhat * xhat, True, LOW_FIRST)
    tl.store(partial_pointers(sum_squares_ptr, program, ROWS), squares)
    if CENTERED:
        tl.store(partial_pointers(sum_g_ptr, program, ROWS), row_sums(g, True, LOW_FIRST))


@kernel
def long_row_dx(
    x_ptr,
    dy_ptr,
    weight_ptr,
    dx_ptr,
    normalizer_ptr,
    exponent_ptr,
    sum_g_ptr,
    sum_g_xhat_ptr,
    sum_squares_ptr,
    dtotal_ptr,
    bias_ptr,
    gate_ptr,
    dgate_ptr,
    first_tile: tl.int64,
    rows: tl.int64,
    inner: tl.int64,
    members: tl.int64,
    after: tl.int64,
    x_outer_stride: tl.int64,
    x_member_stride: tl.int64,
    x_after_stride: tl.int64,
    x_col_stride: tl.int64,
    dy_outer_stride: tl.int64,
    dy_member_stride: tl.int64,
    dy_after_stride: tl.int64,
    dy_col_stride: tl.int64,
    gate_outer_stride: tl.int64,
    gate_member_stride: tl.int64,
    gate_after_stride: tl.int64,
    gate_col_stride: tl.int64,
    dx_outer_stride: tl.int64,
    dx_member_stride: tl.int64,
    dx_after_stride: tl.int64,
    dx_col_stride: tl.int64,
    dtotal_outer_stride: tl.int64,
    dtotal_member_stride: tl.int64,
    dtotal_after_stride: tl.int64,
    dtotal_col_stride: tl.int64,
    dgate_outer_stride: tl.int64,
    dgate_member_stride: tl.int64,
    dgate_after_stride: tl.int64,
    dgate_col_stride: tl.int64,
    COLS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    GATE_X: tl.constexpr,
    GATE_Y: tl.constexpr,
    STRIDED: tl.constexpr,
    OUTER_AXES: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    EPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NEED_DX: tl.constexpr,
    NEED_DGATE: tl.constexpr,
    DTOTAL: tl.constexpr,
    PADDED_BLOCKS: tl.constexpr,
):
    """Write dx and dgate of a block.

    DTOTAL: dtotal is added to dx before it is rounded. GATE_X, GATE_Y: x or y was multiplied by
    act(gate). For dgate with GATE_Y, bias is needed. EPS None: it is not known.
    """
    most: tl.constexpr = 2.0**-48 if x_ptr.dtype.element_ty == tl.float64 else 2.0**-19
    program = tl.program_id(0).to(tl.int64)
    sizes = rows, inner, members, after
    x_strides = x_outer_stride, x_member_stride, x_after_stride, x_col_stride
    dy_strides = dy_outer_stride, dy_member_stride, dy_after_stride, dy_col_stride
    gate_strides = gate_outer_stride, gate_member_stride, gate_after_stride, gate_col_stride
    dx_strides = dx_outer_stride, dx_member_stride, dx_after_stride, dx_col_stride
    dtotal_strides = (
        dtotal_outer_stride,
        dtotal_member_stride,
        dtotal_after_stride,
        dtotal_col_stride,
    )
    dgate_strides = (
        dgate_outer_stride,
        dgate_member_stride,
        dgate_after_stride,
        dgate_col_stride,
    )
    index, normalizer, xhat, g, own_exponent = gradient_block(
        *(x_ptr, dy_ptr, weight_ptr, normalizer_ptr, gate_ptr, first_tile, program),
        *(sizes, x_strides, dy_strides, gate_strides, COLS, CENTERED, HAS_WEIGHT, ZERO_CENTERED),
        *(GATE_X, GATE_Y, STRIDED, OUTER_AXES, VECTOR, BLOCKS, ROWS, HIGH, LOW),
    )
    dtype: tl.constexpr = g.dtype

    # scale g and the partial sums by 2^-exponent, with the largest exponent of the row's blocks
    tile = program // BLOCKS
    exponents = load_partials(exponent_ptr, tile, -100000, BLOCKS, ROWS, PADDED_BLOCKS)
    exponent = tl.max(exponents, 1)
    shift = power_of_two(tl.maximum(exponents - exponent[:, None], -1000), tl.float64)
    dx = g * power_of_two(tl.maximum(own_exponent - exponent, -126), dtype)[:, None, None]
    partials = load_partials(sum_g_xhat_ptr, tile, 0.0, BLOCKS, ROWS, PADDED_BLOCKS)
    squares = load_partials(sum_squares_ptr, tile, 0.0, BLOCKS, ROWS, PADDED_BLOCKS)
    mean_g_xhat = over(tl.sum(partials * shift, 1), COLS)
    if EPS is not None:
        # Where g lies along xhat, dx is small by cancellation, and what the roundings of rstd and
        # xhat have in common over a row would count twice. What mean(xhat^2) + rest_of_one is
        # beyond 1 is taken back, unless it is more than roundings: 16 units in the last place.
        excess = over(tl.sum(squares, 1) - COLS, COLS) + rest_of_one(normalizer, EPS)
        mean_g_xhat -= mean_g_xhat * tl.where(tl.abs(excess) <= most, excess, 0.0)
    mean_g_xhat = mean_g_xhat.to(dtype)
    if CENTERED:
        partials = load_partials(sum_g_ptr, tile, 0.0, BLOCKS, ROWS, PADDED_BLOCKS)
        dx -= over(tl.sum(partials * shift, 1), COLS).to(dtype)[:, None, None]
    dx = tl.fma(-xhat, mean_g_xhat[:, None, None], dx) * normalizer.rstd[:, None, None]
    # normalizer.scale is a power of two, which dx is multiplied by too
    dx = times_power_of_two(dx, exponent + exponent_of(normalizer.scale))
    if DTOTAL:
        dx += load_tile(dtotal_ptr, index, dtotal_strides, STRIDED, VECTOR, dtype)
    if GATE_X is not None:
        x = load_tile(x_ptr, index, x_strides, STRIDED, VECTOR, dtype, True)
        dx, dgate = product_gradients(
            dx, x, gate_ptr, index, gate_strides, GATE_X, STRIDED, VECTOR, dtype, True
        )
    if NEED_DX:
        store_tile(dx_ptr, dx, index, dx_strides, STRIDED, VECTOR)
    if NEED_DGATE:
        if GATE_Y is not None:
            weight, bias = load_parameters(
                *(weight_ptr, bias_ptr, index.member, index.cols, HAS_WEIGHT, HAS_BIAS),
                *(ZERO_CENTERED, COLS, VECTOR, dtype),
            )
            n = scale_and_shift(xhat, weight, bias, HAS_WEIGHT, HAS_BIAS)
            dy = load_tile(dy_ptr, index, dy_strides, STRIDED, VECTOR, dtype, True)
            _, dgate = product_gradients(
                dy, n, gate_ptr, index, gate_strides, GATE_Y, STRIDED, VECTOR, dtype, True
            )
        store_tile(dgate_ptr, dgate, index, dgate_strides, STRIDED, VECTOR)
