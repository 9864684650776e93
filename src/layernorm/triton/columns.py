"""dweight and dbias by themselves, where a program has no room for them beside dx."""

import triton
import triton.language as tl

from layernorm.triton.backward import add_terms
from layernorm.triton.rows import cols_of_tile, normalized, place_of_rows, pointers_to

UNSPECIALIZED = (
    *("x_ptr", "dy_ptr", "normalizer_ptr", "dweight_ptr", "dbias_ptr"),
    *("rows", "inner", "tiles", "splits"),
    *("x_outer_stride", "x_col_stride", "dy_outer_stride", "dy_col_stride"),
)


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=UNSPECIALIZED)
def column_sums(
    x_ptr,
    dy_ptr,
    normalizer_ptr,
    dweight_ptr,
    dbias_ptr,
    rows: tl.int64,
    inner: tl.int64,
    tiles: tl.int64,
    splits: tl.int64,
    x_outer_stride: tl.int64,
    x_col_stride: tl.int64,
    dy_outer_stride: tl.int64,
    dy_col_stride: tl.int64,
    COLS: tl.constexpr,
    CENTERED: tl.constexpr,
    NEED_DWEIGHT: tl.constexpr,
    NEED_DBIAS: tl.constexpr,
    STRIDED: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Sum dy * xhat and dy of some columns over every `splits`-th tile of rows.

    The normalizer (4, rows) is the backward's: scale, mean, residual, rstd. The sums go to
    (splits, COLS) float64.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    blocks: tl.constexpr = (COLS + HIGH * LOW - 1) // (HIGH * LOW)
    program = tl.program_id(0).to(tl.int64)
    split = program // blocks
    cols = cols_of_tile(HIGH, LOW) + (program % blocks).to(tl.int32) * (HIGH * LOW)
    dweight = tl.zeros([ROWS, HIGH, LOW], tl.float64)
    dbias = tl.zeros([ROWS, HIGH, LOW], tl.float64)
    if dtype == tl.float64:
        dweight_low = tl.zeros([ROWS, HIGH, LOW], tl.float64)
        dbias_low = tl.zeros([ROWS, HIGH, LOW], tl.float64)
    else:  # not used
        dweight_low = tl.zeros([1], tl.float64)
        dbias_low = tl.zeros([1], tl.float64)
    for tile in range(split, tiles, splits):
        row, outer, within, live = place_of_rows(tile, rows, inner, ROWS, STRIDED)
        inside = live[:, None, None] & (cols < COLS)[None, :, :]
        dy_at = pointers_to(
            dy_ptr, outer, within, dy_outer_stride, dy_col_stride, cols, STRIDED, VECTOR
        )
        dy = tl.load(dy_at, mask=inside, other=0.0).to(dtype)
        if NEED_DBIAS:
            dbias, dbias_low = add_terms(dbias, dbias_low, dy, dy, ROWS, ROWS, False)
        if NEED_DWEIGHT:
            x_at = pointers_to(
                x_ptr, outer, within, x_outer_stride, x_col_stride, cols, STRIDED, VECTOR
            )
            x = tl.load(x_at, mask=inside, other=0.0).to(dtype)
            scale = tl.load(normalizer_ptr + row, mask=live, other=1.0)
            mean = tl.load(normalizer_ptr + rows + row, mask=live, other=0.0)
            residual = tl.load(normalizer_ptr + 2 * rows + row, mask=live, other=0.0)
            rstd = tl.load(normalizer_ptr + 3 * rows + row, mask=live, other=0.0)
            xhat = normalized(x, scale, mean, residual, rstd, CENTERED)
            dweight, dweight_low = add_terms(dweight, dweight_low, dy, xhat, ROWS, ROWS, True)
    at = split * COLS + cols
    if NEED_DWEIGHT:
        if dtype == tl.float64:
            dweight += dweight_low
        tl.store(dweight_ptr + at, tl.sum(dweight, 0), mask=cols < COLS)
    if NEED_DBIAS:
        if dtype == tl.float64:
            dbias += dbias_low
        tl.store(dbias_ptr + at, tl.sum(dbias, 0), mask=cols < COLS)
