"""dweight and dbias alone, for rows whose sums do not fit into registers beside dx."""

import triton.language as tl

from layernorm.triton.gates import times_activation
from layernorm.triton.kernel import kernel
from layernorm.triton.rows import load_normalizer, normalized
from layernorm.triton.sums import add_products, add_values, no_sums, store_sums
from layernorm.triton.tiles import cols_of_tile, index_of_tile, load_tile, member_of


@kernel
def column_sums(
    x_ptr,
    dy_ptr,
    normalizer_ptr,
    dweight_ptr,
    dbias_ptr,
    gate_ptr,
    rows: tl.int64,
    inner: tl.int64,
    members: tl.int64,
    after: tl.int64,
    tiles: tl.int64,
    splits: tl.int64,
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
    GATE_X: tl.constexpr,
    GATE_Y: tl.constexpr,
    NEED_DWEIGHT: tl.constexpr,
    NEED_DBIAS: tl.constexpr,
    STRIDED: tl.constexpr,
    OUTER_AXES: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Sum dy * xhat and dy of a block of columns over every `splits`-th tile of rows.

    GATE_X, GATE_Y: x or dy is multiplied by act(gate).
    The backward has left the normalizer, (4, rows). Each member has so many `tiles` and `splits`.
    The partial sums go to an array (members * splits, COLS) of float64, or, with one split to a
    member, to dweight and dbias themselves.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    blocks: tl.constexpr = (COLS + HIGH * LOW - 1) // (HIGH * LOW)
    program = tl.program_id(0).to(tl.int64)
    sizes = rows, inner, members, after
    x_strides = x_outer_stride, x_member_stride, x_after_stride, x_col_stride
    dy_strides = dy_outer_stride, dy_member_stride, dy_after_stride, dy_col_stride
    gate_strides = gate_outer_stride, gate_member_stride, gate_after_stride, gate_col_stride
    split = program // blocks
    member, first = member_of(split, splits, OUTER_AXES)
    cols = cols_of_tile(HIGH, LOW) + (program % blocks).to(tl.int32) * (HIGH * LOW)
    dweight = no_sums(ROWS, HIGH, LOW, dtype)
    dbias = no_sums(ROWS, HIGH, LOW, dtype)
    for tile in range(first, tiles, splits):
        index = index_of_tile(member, tile, sizes, cols, COLS, ROWS, STRIDED, OUTER_AXES)
        dy = load_tile(dy_ptr, index, dy_strides, STRIDED, VECTOR, dtype)
        dy = times_activation(dy, gate_ptr, index, gate_strides, GATE_Y, STRIDED, VECTOR, dtype)
        if NEED_DBIAS:
            dbias = add_values(dbias, dy, ROWS, ROWS)
        if NEED_DWEIGHT:
            x = load_tile(x_ptr, index, x_strides, STRIDED, VECTOR, dtype)
            x = times_activation(x, gate_ptr, index, gate_strides, GATE_X, STRIDED, VECTOR, dtype)
            normalizer = load_normalizer(normalizer_ptr, rows, index.row, index.row_mask)
            xhat = normalized(x, normalizer, CENTERED)
            dweight = add_products(dweight, dy, xhat, ROWS, ROWS)
    if NEED_DWEIGHT:
        store_sums(dweight_ptr, dweight, split, cols, COLS, dtype)
    if NEED_DBIAS:
        store_sums(dbias_ptr, dbias, split, cols, COLS, dtype)
