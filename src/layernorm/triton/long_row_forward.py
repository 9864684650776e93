"""Forward of long rows: y, from the partial sums of `long_row_statistics.py`."""

import triton
import triton.language as tl

from layernorm.triton.forward import load_parameters, scale_and_shift, store_statistics
from layernorm.triton.gates import times_activation
from layernorm.triton.kernel import kernel
from layernorm.triton.long_row_statistics import merged_statistics
from layernorm.triton.rows import Normalizer, normalized
from layernorm.triton.tiles import index_of_block, load_tile, store_tile


@triton.jit
def uniform(normalizer):
    """Return the normalizer of one row as scalars, which every thread has.

    As sums of the row's blocks, Triton 3.6 would broadcast them to a whole tile in the layout of
    the blocks, and move that tile through shared memory.
    """
    if normalizer.rstd.shape[0] == 1:
        return Normalizer(
            tl.full([1], tl.sum(normalizer.scale, 0), normalizer.scale.dtype),
            tl.full([1], tl.sum(normalizer.mean, 0), normalizer.mean.dtype),
            tl.full([1], tl.sum(normalizer.residual, 0), normalizer.residual.dtype),
            tl.full([1], tl.sum(normalizer.rstd, 0), normalizer.rstd.dtype),
        )
    else:
        return normalizer


@kernel
def long_row_forward(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    residual_ptr,
    largest_ptr,
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
    y_outer_stride: tl.int64,
    y_member_stride: tl.int64,
    y_after_stride: tl.int64,
    y_col_stride: tl.int64,
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
    GATE_X: tl.constexpr,
    GATE_Y: tl.constexpr,
    STRIDED: tl.constexpr,
    OUTER_AXES: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    PADDED_BLOCKS: tl.constexpr,
):
    """Write y of a block and, if SAVE and the block is its row's first, the statistics.

    GATE_X, GATE_Y: x or y is multiplied by act(gate).
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    sizes = rows, inner, members, after
    x_strides = x_outer_stride, x_member_stride, x_after_stride, x_col_stride
    y_strides = y_outer_stride, y_member_stride, y_after_stride, y_col_stride
    gate_strides = gate_outer_stride, gate_member_stride, gate_after_stride, gate_col_stride
    index = index_of_block(
        first_tile, program, sizes, COLS, STRIDED, OUTER_AXES, BLOCKS, ROWS, HIGH, LOW
    )
    exponent, normalizer = merged_statistics(
        *(largest_ptr, center_ptr, rest_ptr, squares_ptr, program // BLOCKS, dtype),
        *(COLS, EPS, CENTERED, BLOCKS, ROWS, PADDED_BLOCKS),
    )
    normalizer = uniform(normalizer)
    weight, bias = load_parameters(
        *(weight_ptr, bias_ptr, index.member, index.cols, HAS_WEIGHT, HAS_BIAS, ZERO_CENTERED),
        *(COLS, VECTOR, dtype),
    )
    x = load_tile(x_ptr, index, x_strides, STRIDED, VECTOR, dtype)
    x = times_activation(x, gate_ptr, index, gate_strides, GATE_X, STRIDED, VECTOR, dtype)
    xhat = normalized(x, normalizer, CENTERED)
    y = scale_and_shift(xhat, weight, bias, HAS_WEIGHT, HAS_BIAS)
    y = times_activation(y, gate_ptr, index, gate_strides, GATE_Y, STRIDED, VECTOR, dtype)
    store_tile(y_ptr, y, index, y_strides, STRIDED, VECTOR)
    if SAVE:
        if program % BLOCKS == 0:
            store_statistics(
                *(mean_ptr, rstd_ptr, residual_ptr, index.row, index.row_mask),
                *(exponent, normalizer, CENTERED),
            )
