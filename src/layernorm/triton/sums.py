"""dweight and dbias: sums over rows, first within each program, then over the programs.

Sums are float64, and pairs of float64 if the terms are float64: sums of float32 terms cannot
overflow there, nor products underflow. Each program stores partial sums; `add_programs` adds them
in a fixed order and rounds once. Each member has such sums of its own.
"""

import triton
import triton.language as tl

from layernorm.triton.kernel import kernel


@triton.jit
def no_sums(SUM_ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, dtype: tl.constexpr):
    """Return zero sums, (SUM_ROWS, HIGH, LOW), with low halves if the terms are float64."""
    high = tl.zeros([SUM_ROWS, HIGH, LOW], tl.float64)
    if dtype == tl.float64:
        return high, tl.zeros([SUM_ROWS, HIGH, LOW], tl.float64)
    else:
        return high, tl.zeros([1], tl.float64)


@triton.jit
def fold_rows(v, ROWS: tl.constexpr, SUM_ROWS: tl.constexpr):
    """Add rows of v that the same threads hold: SUM_ROWS rows remain of ROWS."""
    if ROWS == SUM_ROWS:
        return v
    elif SUM_ROWS == 1:
        return tl.sum(v, 0)[None, :, :]
    else:
        return tl.sum(tl.reshape(v, (ROWS // SUM_ROWS, SUM_ROWS, v.shape[1], v.shape[2])), 0)


@triton.jit
def add_in_pairs(sums, v, ROWS: tl.constexpr, SUM_ROWS: tl.constexpr):
    """Add the rows of v to sums that are pairs of float64."""
    high, low = sums
    v = fold_rows(v, ROWS, SUM_ROWS)
    total = high + v
    part = total - high
    return total, low + ((high - (total - part)) + (v - part))


@triton.jit
def add_values(sums, v, ROWS: tl.constexpr, SUM_ROWS: tl.constexpr):
    """Add the rows of v to the sums, as for dbias."""
    if v.dtype == tl.float64:
        return add_in_pairs(sums, v, ROWS, SUM_ROWS)
    else:
        high, low = sums
        return high + fold_rows(v.to(tl.float64), ROWS, SUM_ROWS), low


@triton.jit
def add_products(sums, v, w, ROWS: tl.constexpr, SUM_ROWS: tl.constexpr):
    """Add the rows of v * w to the sums, as for dweight."""
    high, low = sums
    if v.dtype == tl.float64:
        product = v * w
        low += fold_rows(tl.fma(v, w, -product), ROWS, SUM_ROWS)
        return add_in_pairs((high, low), product, ROWS, SUM_ROWS)
    elif ROWS == SUM_ROWS:
        return tl.fma(v.to(tl.float64), w.to(tl.float64), high), low
    else:
        return high + fold_rows(v.to(tl.float64) * w.to(tl.float64), ROWS, SUM_ROWS), low


@triton.jit
def store_sums(base, sums, program, cols, COLS: tl.constexpr, dtype: tl.constexpr):
    """Store a program's sums of these columns in an array (programs, COLS)."""
    high, low = sums
    if dtype == tl.float64:
        high += low
    store_rounded(base + program * COLS + cols, tl.sum(high, 0), cols < COLS)


@triton.jit
def store_rounded(pointers, value, mask):
    """Store float64s in an array of their type or another."""
    if pointers.dtype.element_ty != tl.float64:
        value = value.to(tl.float32)
    tl.store(pointers, value.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def add_up(
    sums_ptr, to_ptr, programs, cols, COLS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Write the sum of an array (programs, COLS) over the programs, for these columns."""
    high = tl.zeros([ROWS, BLOCK], tl.float64)
    low = tl.zeros([ROWS, BLOCK], tl.float64)
    for first in range(0, programs, ROWS):
        program = first + tl.arange(0, ROWS).to(tl.int64)
        mask = (program < programs)[:, None] & (cols < COLS)[None, :]
        pointers = sums_ptr + program[:, None] * COLS + cols[None, :]
        value = tl.load(pointers, mask=mask, other=0.0)
        total = high + value
        part = total - high
        # the rounding error of a sum that is not finite is NaN
        rest = (high - (total - part)) + (value - part)
        low += tl.where(tl.abs(total) < float("inf"), rest, 0.0)
        high = total
    store_rounded(to_ptr + cols, tl.sum(high, 0) + tl.sum(low, 0), cols < COLS)


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
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write dweight and dbias of BLOCK columns of a member; ROWS partial sums are added at a time.

    The arrays are (members, programs, COLS) and (members, COLS).
    """
    blocks: tl.constexpr = (COLS + BLOCK - 1) // BLOCK
    program = tl.program_id(0).to(tl.int64)
    member = program // blocks
    cols = program % blocks * BLOCK + tl.arange(0, BLOCK)
    first = member * programs * COLS
    to = member * COLS
    if NEED_DWEIGHT:
        add_up(dweight_sums_ptr + first, dweight_ptr + to, programs, cols, COLS, ROWS, BLOCK)
    if NEED_DBIAS:
        add_up(dbias_sums_ptr + first, dbias_ptr + to, programs, cols, COLS, ROWS, BLOCK)
