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
    x_outer_stride: tl.int64,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    SAVE: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNKS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    MOST: tl.constexpr,
):
    """Write y of a chunk; the first chunk of a row writes the statistics. y is contiguous."""
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    place = place_of_chunk(program, COLS, CHUNKS, HIGH, LOW)
    exponent, normalizer = merged_statistics(
        *(largest_ptr, sum_ptr, rest_ptr, squares_ptr, place.row, dtype),
        *(COLS, EPS, CENTERED, CHUNKS, MOST),
    )
    x = load_tile(x_ptr, place, x_outer_stride, 1, False, VECTOR, dtype)
    weight, bias = load_parameters(
        *(weight_ptr, bias_ptr, place.cols, HAS_WEIGHT, HAS_BIAS, ZERO_CENTERED),
        *(COLS, VECTOR, dtype),
    )
    xhat = normalized(x, normalizer, CENTERED)
    y = scale_and_shift(xhat, weight, bias, HAS_WEIGHT, HAS_BIAS)
    store_tile(y_ptr, y, place, COLS, 1, False, VECTOR)
    if SAVE:
        is_first = (place.within + program) % CHUNKS == 0
        store_statistics(
            *(mean_ptr, rstd_ptr, residual_ptr, place.row, is_first),
            *(exponent, normalizer, CENTERED),
        )
