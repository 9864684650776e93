"""dweight and dbias: the sums of the backward's programs added in one order, and rounded."""

import triton
import triton.language as tl

UNSPECIALIZED = ("dweight_sums_ptr", "dbias_sums_ptr", "dweight_ptr", "dbias_ptr", "programs")


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


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=UNSPECIALIZED)
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
