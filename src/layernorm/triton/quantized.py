"""Norms in 8 bits: the scales of rows of y, and q = y / scale, rounded and saturated.

QUANTIZED is the type of q: "int8", "float8_e4m3fn" or "float8_e5m2". Its bytes are computed in
integers and stored as int8: a GPU's own conversions treat NaN and large numbers in other ways, and
round float64 twice.
"""

import triton
import triton.language as tl

from layernorm.triton.kernel import kernel
from layernorm.triton.tiles import (
    cols_of_tile,
    index_of_tile,
    load_tile,
    member_of_tile,
    store_tile,
)


@triton.jit
def quotient(v, w):
    """Return v / w, correctly rounded, which a GPU's usual division of float32 is not."""
    if v.dtype == tl.float64:
        return v / w
    else:
        return tl.div_rn(v, w)


@triton.jit
def bits_of(v):
    """Return the bits of v as integers."""
    if v.dtype == tl.float64:
        return v.to(tl.int64, bitcast=True)
    else:
        return v.to(tl.int32, bitcast=True)


@triton.jit
def largest_bits(y):
    """Return the bits of the largest magnitude of each row, those of a NaN if there is one.

    They are ordered as magnitudes are, with NaN above all: a maximum of floats would lose it.
    """
    magnitude: tl.constexpr = 0x7FFFFFFFFFFFFFFF if y.dtype == tl.float64 else 0x7FFFFFFF
    return tl.max(tl.max(bits_of(y) & magnitude, 2), 1)


@triton.jit
def store_scales(base, largest, index, dtype: tl.constexpr, QUANTIZED: tl.constexpr):
    """Store and return the scales of rows, max|y| / m but normal numbers, given bits of max|y|."""
    most: tl.constexpr = (
        127.0 if QUANTIZED == "int8" else 448.0 if QUANTIZED == "float8_e4m3fn" else 57344.0
    )
    least: tl.constexpr = 2.0**-1022 if dtype == tl.float64 else 2.0**-126
    scale = quotient(largest.to(dtype, bitcast=True), tl.full(largest.shape, most, dtype))
    scale = tl.where(scale < least, least, scale)  # NaN stays
    tl.store(base + index.row, scale, mask=index.row_mask)
    return scale


@triton.jit
def int8_of(v):
    """Round v to nearest, ties to even, and saturate; the lowest byte of the result is the int8."""
    to_integer: tl.constexpr = 1.5 * 2.0**52 if v.dtype == tl.float64 else 1.5 * 2.0**23
    v = tl.where(v < -128.0, -128.0, tl.where(v > 127.0, 127.0, v))
    v = tl.where(v == v, v, 0.0)
    # the sum has no bits after the point, and the integer in the lowest ones
    return bits_of(v + to_integer)


@triton.jit
def float8_of(
    v,
    DIGITS: tl.constexpr,
    LEAST_EXPONENT: tl.constexpr,
    MOST: tl.constexpr,
    NAN: tl.constexpr,
):
    """Round v to nearest, ties to even, and saturate; the lowest byte of the result is the float8.

    The float8 has DIGITS bits after the point, and is subnormal below 2^LEAST_EXPONENT.
    """
    digits: tl.constexpr = 52 if v.dtype == tl.float64 else 23
    bias: tl.constexpr = 1023 if v.dtype == tl.float64 else 127
    dropped: tl.constexpr = digits - DIGITS
    least: tl.constexpr = (bias + LEAST_EXPONENT) << digits
    size = tl.abs(v)
    size = tl.where(size < MOST, size, MOST)
    # 2^e, the power of two below size, and 2^(e + dropped), whose last place is the float8's
    power = tl.maximum((bits_of(size) >> digits) << digits, least)
    shifted = power + (dropped << digits)
    rounded = size + shifted.to(v.dtype, bitcast=True)
    code = bits_of(rounded) - shifted + ((power - least) >> dropped)
    sign = tl.where(bits_of(v) < 0, 0x80, 0)
    return tl.where(v == v, code | sign, NAN)


@triton.jit
def store_quantized(
    base,
    y,
    scale,
    index,
    strides,
    QUANTIZED: tl.constexpr,
    STRIDED: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Store q of a tile of y, given the scales of its rows."""
    v = quotient(y, scale[:, None, None])
    if QUANTIZED == "int8":
        q = int8_of(v)
    elif QUANTIZED == "float8_e4m3fn":
        q = float8_of(v, 3, -6, 448.0, 0x7F)
    else:
        q = float8_of(v, 2, -14, 57344.0, 0x7E)
    store_tile(base, q, index, strides, STRIDED, VECTOR)


@triton.jit
def quantize_tile(
    q_ptr,
    y,
    scale_ptr,
    index,
    q_strides,
    QUANTIZED: tl.constexpr,
    GIVEN_SCALE: tl.constexpr,
    COLS: tl.constexpr,
    STRIDED: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Store q of a tile of whole rows, and their scales, or load the given scale."""
    dtype: tl.constexpr = y.dtype
    if GIVEN_SCALE:
        scale = tl.load(scale_ptr + tl.zeros_like(index.row))
    else:
        if y.shape[1] * y.shape[2] != COLS:  # padding lanes
            y = tl.where(index.mask, y, 0.0)
        scale = store_scales(scale_ptr, largest_bits(y), index, dtype, QUANTIZED)
    store_quantized(q_ptr, y, scale, index, q_strides, QUANTIZED, STRIDED, VECTOR)


@kernel
def quantize_rows(
    y_ptr,
    q_ptr,
    scale_ptr,
    rows: tl.int64,
    inner: tl.int64,
    members: tl.int64,
    after: tl.int64,
    y_outer_stride: tl.int64,
    y_member_stride: tl.int64,
    y_after_stride: tl.int64,
    y_col_stride: tl.int64,
    q_outer_stride: tl.int64,
    q_member_stride: tl.int64,
    q_after_stride: tl.int64,
    q_col_stride: tl.int64,
    COLS: tl.constexpr,
    QUANTIZED: tl.constexpr,
    GIVEN_SCALE: tl.constexpr,
    STRIDED: tl.constexpr,
    OUTER_AXES: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Write q of a tile of long rows of y, and the scales of the rows, or use the given scale.

    The program goes through the BLOCKS blocks of its rows, twice if it computes their scales.
    """
    dtype: tl.constexpr = tl.float64 if y_ptr.dtype.element_ty == tl.float64 else tl.float32
    tile = tl.program_id(0).to(tl.int64)
    cols = cols_of_tile(HIGH, LOW)
    sizes = rows, inner, members, after
    y_strides = y_outer_stride, y_member_stride, y_after_stride, y_col_stride
    q_strides = q_outer_stride, q_member_stride, q_after_stride, q_col_stride
    member, tile = member_of_tile(tile, sizes, ROWS, STRIDED, OUTER_AXES)
    first = index_of_tile(member, tile, sizes, cols, COLS, ROWS, STRIDED, OUTER_AXES)
    if GIVEN_SCALE:
        scale = tl.load(scale_ptr + tl.zeros_like(first.row))
    else:
        largest = bits_of(tl.zeros([ROWS], dtype))
        for block in range(BLOCKS):
            at = cols + block * (HIGH * LOW)
            index = index_of_tile(member, tile, sizes, at, COLS, ROWS, STRIDED, OUTER_AXES)
            y = load_tile(y_ptr, index, y_strides, STRIDED, VECTOR, dtype)
            largest = tl.maximum(largest, largest_bits(y))
        scale = store_scales(scale_ptr, largest, first, dtype, QUANTIZED)
    for block in range(BLOCKS):
        at = cols + block * (HIGH * LOW)
        index = index_of_tile(member, tile, sizes, at, COLS, ROWS, STRIDED, OUTER_AXES)
        y = load_tile(y_ptr, index, y_strides, STRIDED, VECTOR, dtype)
        store_quantized(q_ptr, y, scale, index, q_strides, QUANTIZED, STRIDED, VECTOR)
