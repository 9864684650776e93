"""Forward of rows in chunks: y, from what `chunks.py` measured."""

import triton.language as tl

from layernorm.triton.chunks import merged_statistics
from layernorm.triton.forward import load_parameters, scale_and_shift, store_statistics
from layernorm.triton.kernel import kernel
from layernorm.triton.rows import normalized
from layernorm.triton.tiles import load_tile, place_of_chunk, store_tile


@kernel
def wide_forward(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    residual_ptr,
    largest_ptr,
    sum_ptr,
    rest_ptr,
    squares_ptr,
    first: tl.int64,
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
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    MOST: tl.constexpr,
):
    """Write y of a chunk; the first chunk of a row writes the statistics."""
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    place = place_of_chunk(first, program, rows, inner, COLS, STRIDED, CHUNKS, ROWS, HIGH, LOW)
    exponent, normalizer = merged_statistics(
        *(largest_ptr, sum_ptr, rest_ptr, squares_ptr, program // CHUNKS, dtype),
        *(COLS, EPS, CENTERED, CHUNKS, ROWS, MOST),
    )
    weight, bias = load_parameters(
        *(weight_ptr, bias_ptr, place.cols, HAS_WEIGHT, HAS_BIAS, ZERO_CENTERED),
        *(COLS, VECTOR, dtype),
    )
    x = load_tile(x_ptr, place, x_outer_stride, x_col_stride, STRIDED, VECTOR, dtype)
    xhat = normalized(x, normalizer, CENTERED)
    y = scale_and_shift(xhat, weight, bias, HAS_WEIGHT, HAS_BIAS)
    store_tile(y_ptr, y, place, y_outer_stride, y_col_stride, STRIDED, VECTOR)
    if SAVE:
        if program % CHUNKS == 0:
            store_statistics(
                *(mean_ptr, rstd_ptr, residual_ptr, place.row, place.live),
                *(exponent, normalizer, CENTERED),
            )
