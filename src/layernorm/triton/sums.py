"""dweight and dbias: sums over rows, first within each program, then over the programs.

Sums are float64, and for float64 terms pairs of float64: no sum of float32 terms overflows there,
and no product underflows. Each program leaves its own; `add_programs` adds those up in one order,
and rounds once.
"""

import triton
import triton.language as tl

from layernorm.triton.kernel import kernel


@triton.jit
def no_sums(KEPT: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, dtype: tl.constexpr):
    """Return the sums of no rows: (KEPT, HIGH, LOW), and the low halves if terms are float64."""
    high = tl.zeros([KEPT, HIGH, LOW], tl.float64)
    if dtype == tl.float64:
        return high, tl.zeros([KEPT, HIGH, LOW], tl.float64)
    else:
        return high, tl.zeros([1], tl.float64)


@triton.jit
def fold_rows(v, ROWS: tl.constexpr, KEPT: tl.constexpr):
    """Add up the rows that the same threads have."""
    if ROWS == KEPT:
        return v
    elif KEPT == 1:
        return tl.sum(v, 0)[None, :, :]
    else:
        return tl.sum(tl.reshape(v, (ROWS // KEPT, KEPT, v.shape[1], v.shape[2])), 0)


@triton.jit
def add_in_pairs(sums, v, ROWS: tl.constexpr, KEPT: tl.constexpr):
    """Add the rows of v to sums that are pairs."""
    high, low = sums
    v = fold_rows(v, ROWS, KEPT)
    total = high + v
    part = total - high
    return total, low + ((high - (total - part)) + (v - part))


@triton.jit
def add_values(sums, v, ROWS: tl.constexpr, KEPT: tl.constexpr):
    """Add the rows of v, as for dbias."""
    if v.dtype == tl.float64:
        return add_in_pairs(sums, v, ROWS, KEPT)
    else:
        high, low = sums
        return high + fold_rows(v.to(tl.float64), ROWS, KEPT), low


@triton.jit
def add_products(sums, v, w, ROWS: tl.constexpr, KEPT: tl.constexpr):
    """Add the rows of v * w, as for dweight."""
    high, low = sums
    if v.dtype == tl.float64:
        product = v * w
        low += fold_rows(tl.fma(v, w, -product), ROWS, KEPT)
        return add_in_pairs((high, low), product, ROWS, KEPT)
    elif ROWS == KEPT:
        return tl.fma(v.to(tl.float64), w.to(tl.float64), high), low
    else:
        return high + fold_rows(v.to(tl.float64) * w.to(tl.float64), ROWS, KEPT), low


@triton.jit
def store_sums(base, sums, program, cols, COLS: tl.constexpr, dtype: tl.constexpr):
    """Store a program's sums of these columns in (programs, COLS)."""
    high, low = sums
    if dtype == tl.float64:
        high += low
    tl.store(base + program * COLS + cols, tl.sum(high, 0), mask=cols < COLS)


@triton.jit
def add_up(
    sums_ptr, to_ptr, programs, cols, COLS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr
):
    """Write the sum of (programs, COLS) over the programs, for these columns."""
    high = tl.zeros([CHUNK, BLOCK], tl.float64)
    low = tl.zeros([CHUNK, BLOCK], tl.float64)
    for first in range(0, programs, CHUNK):
        at = first + tl.arange(0, CHUNK).to(tl.int64)
        inside = (at < programs)[:, None] & (cols < COLS)[None, :]
        value = tl.load(sums_ptr + at[:, None] * COLS + cols[None, :], mask=inside, other=0.0)
        total = high + value
        part = total - high
        # nothing is left of a sum that is not finite
        rest = (high - (total - part)) + (value - part)
        low += tl.where(tl.abs(total) < float("inf"), rest, 0.0)
        high = total
    result = tl.sum(high, 0) + tl.sum(low, 0)
    if to_ptr.dtype.element_ty != tl.float64:
        result = result.to(tl.float32)
    tl.store(to_ptr + cols, result.to(to_ptr.dtype.element_ty), mask=cols < COLS)


@kernel
def add_programs(
    dweight_sums_ptr,
    dbias_sums_ptr,
    dweight_ptr,
    dbias_ptr,
    programs: tl.int64,
    COLS: tl.constexpr,
    NEED_DWEIGHT: tl.constexpr,
    NEED_DBIAS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write dweight and dbias of BLOCK columns."""
    cols = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if NEED_DWEIGHT:
        add_up(dweight_sums_ptr, dweight_ptr, programs, cols, COLS, CHUNK, BLOCK)
    if NEED_DBIAS:
        add_up(dbias_sums_ptr, dbias_ptr, programs, cols, COLS, CHUNK, BLOCK)
