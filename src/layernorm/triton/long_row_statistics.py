"""Long rows, which do not fit into one program: partial sums, and the statistics made of them.

A long row is split into blocks of columns, with one program a block, and computed in several
launches. Each program stores its block's partial sums in an array (tiles, BLOCKS, ROWS), and each
program of the next launch adds all blocks' partial sums of its rows, in an order that does not
depend on the number of rows. A block is scaled by a power of two of its own, so that no sum leaves
its range. A tile has one row if rows are contiguous, and neighboring rows if STRIDED.
"""

import triton
import triton.language as tl

from layernorm.triton.gates import times_activation
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
from layernorm.triton.tiles import index_of_block, load_rows, load_tile


@triton.jit
def partial_pointers(base, program, ROWS: tl.constexpr):
    """Return the pointers to a program's own partial sums, (ROWS,)."""
    return base + program * ROWS + tl.arange(0, ROWS)


@triton.jit
def load_partials(
    base, tile, other, BLOCKS: tl.constexpr, ROWS: tl.constexpr, PADDED_BLOCKS: tl.constexpr
):
    """Load the partial sums of all blocks of a tile, (ROWS, PADDED_BLOCKS)."""
    block = tl.arange(0, PADDED_BLOCKS)[None, :]
    offsets = (tile * BLOCKS + block) * ROWS + tl.arange(0, ROWS)[:, None]
    return tl.load(base + offsets, mask=block < BLOCKS, other=other)


@triton.jit
def mean_of_partials(
    base,
    tile,
    COLS: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED_BLOCKS: tl.constexpr,
):
    """Return the sum of the partial sums of all blocks of a tile, divided by COLS."""
    partials = load_partials(base, tile, 0.0, BLOCKS, ROWS, PADDED_BLOCKS)
    return over(tl.sum(partials, 1), COLS)


@triton.jit
def are_out_of_range(rstd_ptr, index):
    """Tell which rows have a saved rstd that is too near the limits of its type."""
    rstd = tl.load(rstd_ptr + index.row, mask=index.row_mask, other=1.0)
    return is_ordinary_rstd(rstd) == 0


@triton.jit
def largest_partial(
    largest_ptr, tile, BLOCKS: tl.constexpr, ROWS: tl.constexpr, PADDED_BLOCKS: tl.constexpr
):
    """Return the largest magnitude of each row."""
    return tl.max(load_partials(largest_ptr, tile, 0.0, BLOCKS, ROWS, PADDED_BLOCKS), 1)


@triton.jit
def center_of_rows(
    largest_ptr,
    sum_ptr,
    tile,
    exponent,
    dtype: tl.constexpr,
    COLS: tl.constexpr,
    CENTERED: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED_BLOCKS: tl.constexpr,
):
    """Return the rounded mean of the rows times 2^-exponent."""
    center = tl.zeros([ROWS], dtype)
    if CENTERED:
        largest = load_partials(largest_ptr, tile, 0.0, BLOCKS, ROWS, PADDED_BLOCKS)
        partials = load_partials(sum_ptr, tile, 0.0, BLOCKS, ROWS, PADDED_BLOCKS)
        # 2^-1000 is negligible beside the largest, and still a normal number
        shift = tl.maximum(exponent_of(largest) - exponent[:, None], -1000)
        center = over(tl.sum(partials * power_of_two(shift, tl.float64), 1), COLS).to(dtype)
    return center


@triton.jit
def merged_statistics(
    largest_ptr,
    center_ptr,
    rest_ptr,
    squares_ptr,
    tile,
    dtype: tl.constexpr,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED_BLOCKS: tl.constexpr,
):
    """Return exponent and normalizer of the rows, from the partial sums of all their blocks."""
    largest = largest_partial(largest_ptr, tile, BLOCKS, ROWS, PADDED_BLOCKS)
    exponent, scale = scaling_exponents(largest, EPS)
    variance = mean_of_partials(squares_ptr, tile, COLS, BLOCKS, ROWS, PADDED_BLOCKS)
    mean = tl.zeros([ROWS], dtype)
    residual = tl.zeros([ROWS], dtype)
    if CENTERED:
        center = tl.load(partial_pointers(center_ptr, tile, ROWS))
        rest = mean_of_partials(rest_ptr, tile, COLS, BLOCKS, ROWS, PADDED_BLOCKS)
        square = rest * rest
        # a constant row, whose variance is the rounding error of the mean
        around_mean = variance - square
        variance = tl.where(around_mean <= square * 2.0**-40, variance * 0.0, around_mean)
        first = center.to(tl.float64)
        exact = first + rest
        mean = exact.to(dtype)
        if dtype == tl.float64:
            part = exact - first
            residual = (first - (exact - part)) + (rest - part)
        else:
            residual = (exact - mean.to(tl.float64)).to(dtype)
    return scaled_rstd(variance, exponent, scale, mean, residual, EPS)


@kernel
def long_row_sums(
    x_ptr,
    rstd_ptr,
    largest_ptr,
    sum_ptr,
    addend_ptr,
    total_ptr,
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
    CENTERED: tl.constexpr,
    ADDEND: tl.constexpr,
    GATE_X: tl.constexpr,
    ONLY_OUT_OF_RANGE: tl.constexpr,
    STRIDED: tl.constexpr,
    OUTER_AXES: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Store the largest magnitude of each row in a block, and the sum divided by its power of two.

    ADDEND: of total = x + addend, which is written too and which the next launches read.
    GATE_X: of x * act(gate). ONLY_OUT_OF_RANGE: only for rows whose saved rstd is out of range.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    sizes = rows, inner, members, after
    x_strides = x_outer_stride, x_member_stride, x_after_stride, x_col_stride
    gate_strides = gate_outer_stride, gate_member_stride, gate_after_stride, gate_col_stride
    addend_strides = (
        addend_outer_stride,
        addend_member_stride,
        addend_after_stride,
        addend_col_stride,
    )
    total_strides = total_outer_stride, total_member_stride, total_after_stride, total_col_stride
    index = index_of_block(
        first_tile, program, sizes, COLS, STRIDED, OUTER_AXES, BLOCKS, ROWS, HIGH, LOW
    )
    mask = index.row_mask
    if ONLY_OUT_OF_RANGE:
        mask = are_out_of_range(rstd_ptr, index)
    if any_row(mask):
        x = load_rows(
            *(x_ptr, addend_ptr, total_ptr, index, x_strides, addend_strides, total_strides),
            *(ADDEND, STRIDED, VECTOR, dtype),
        )
        x = times_activation(x, gate_ptr, index, gate_strides, GATE_X, STRIDED, VECTOR, dtype)
        largest = largest_of_rows(x)
        tl.store(partial_pointers(largest_ptr, program, ROWS), largest, mask=mask)
        if CENTERED:
            scale = power_of_two(-exponent_of(largest), dtype)
            total = row_sums(x * scale[:, None, None], False, VECTOR or STRIDED)
            tl.store(partial_pointers(sum_ptr, program, ROWS), total, mask=mask)


@kernel
def long_row_squares(
    x_ptr,
    mean_ptr,
    rstd_ptr,
    largest_ptr,
    sum_ptr,
    center_ptr,
    rest_ptr,
    squares_ptr,
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
    gate_outer_stride: tl.int64,
    gate_member_stride: tl.int64,
    gate_after_stride: tl.int64,
    gate_col_stride: tl.int64,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    GATE_X: tl.constexpr,
    GIVEN_MEAN: tl.constexpr,
    ONLY_OUT_OF_RANGE: tl.constexpr,
    STRIDED: tl.constexpr,
    OUTER_AXES: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    PADDED_BLOCKS: tl.constexpr,
):
    """Store the sums of x - center and of its square of each row in a block.

    The center is the rounded mean, from `long_row_sums`. It is stored, because another kernel may
    add the sums up in another order. GATE_X: x * act(gate) stands for x. GIVEN_MEAN: the center is
    the saved mean, to recompute its residual.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    sizes = rows, inner, members, after
    x_strides = x_outer_stride, x_member_stride, x_after_stride, x_col_stride
    gate_strides = gate_outer_stride, gate_member_stride, gate_after_stride, gate_col_stride
    index = index_of_block(
        first_tile, program, sizes, COLS, STRIDED, OUTER_AXES, BLOCKS, ROWS, HIGH, LOW
    )
    mask = index.row_mask
    if ONLY_OUT_OF_RANGE:
        mask = are_out_of_range(rstd_ptr, index)
    if any_row(mask):
        scale = tl.full([ROWS], 1.0, dtype)
        if GIVEN_MEAN:
            center = tl.load(mean_ptr + index.row, mask=index.row_mask, other=0.0)
        else:
            tile = program // BLOCKS
            largest = largest_partial(largest_ptr, tile, BLOCKS, ROWS, PADDED_BLOCKS)
            exponent, scale = scaling_exponents(largest, EPS)
            center = center_of_rows(
                *(largest_ptr, sum_ptr, tile, exponent, dtype),
                *(COLS, CENTERED, BLOCKS, ROWS, PADDED_BLOCKS),
            )
            if program % BLOCKS == 0:
                tl.store(partial_pointers(center_ptr, tile, ROWS), center, mask=mask)
        x = load_tile(x_ptr, index, x_strides, STRIDED, VECTOR, dtype)
        x = times_activation(x, gate_ptr, index, gate_strides, GATE_X, STRIDED, VECTOR, dtype)
        d = tl.where(index.mask, x * scale[:, None, None] - center[:, None, None], 0.0)
        if CENTERED:
            rest = row_sums(d, True, VECTOR or STRIDED)
            tl.store(partial_pointers(rest_ptr, program, ROWS), rest, mask=mask)
        squares = row_sums(d * d, True, VECTOR or STRIDED)
        tl.store(partial_pointers(squares_ptr, program, ROWS), squares, mask=mask)
