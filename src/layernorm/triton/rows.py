"""The rows of a tile: their sums and their statistics.

A row is summed along one of the tile's two axes of columns in the type of the arithmetic, where
that is in the registers of a thread, and along the other in float64. (A tile that is reshaped for
that changes its place in the registers at every sum.) Fused multiply-adds are those written here:
the kernels are compiled with enable_fp_fusion=False. The reasons are
in docs/derivation.md, "Why a rounded mean is not enough" and "Rows at the ends of the range".
"""

from typing import NamedTuple

import triton
import triton.language as tl

# var + eps outside: squares may have underflowed or overflowed.
_LEAST_TOTAL: tl.constexpr = tl.constexpr(2.0**-80)
_LEAST_TOTAL_64: tl.constexpr = tl.constexpr(2.0**-900)
_LARGEST: tl.constexpr = tl.constexpr((2 - 2.0**-23) * 2.0**127)
_LARGEST_64: tl.constexpr = tl.constexpr((2 - 2.0**-52) * 2.0**1023)
# eps after scaling, from which on nothing else of var + eps is left in a float64.
_ALL_OF_THE_TOTAL: tl.constexpr = tl.constexpr(2.0**60)


class Normalizer(NamedTuple):
    """What turns rows of x into xhat: ((x * scale - mean) - residual) * rstd, each (rows,).

    scale is a power of two, 1 but for rows that leave the range of their type. mean + residual,
    unevaluated, is the mean of x * scale.
    """

    scale: tl.tensor
    mean: tl.tensor
    residual: tl.tensor
    rstd: tl.tensor


@triton.jit
def row_sums(v, GROUPED: tl.constexpr, LOW_FIRST: tl.constexpr):
    """Sum each row in float64; GROUPED: the first few elements that meet, in their own type.

    Those are what one thread has of the row: LOW_FIRST, along the last axis.
    """
    if not GROUPED:
        v = v.to(tl.float64)
    return tl.sum(tl.sum(v, 2 if LOW_FIRST else 1).to(tl.float64), 1)


@triton.jit
def over(total, COLS: tl.constexpr):
    """Return total / COLS in float64: exact where the quotient is a float64."""
    n = tl.full(total.shape, COLS, tl.float64)
    inverse = tl.full(total.shape, 1.0 / COLS, tl.float64)
    quotient = total * inverse
    return tl.fma(tl.fma(-quotient, n, total), inverse, quotient)


@triton.jit
def moments(
    x,
    inside,
    COLS: tl.constexpr,
    GROUP_X: tl.constexpr,
    LOW_FIRST: tl.constexpr,
    CENTERED: tl.constexpr,
):
    """Return mean, residual and variance of the rows; mean + residual, unevaluated, is the mean.

    GROUP_X: sums of x may begin in its own type. They may for 16 bits, where numbers far from zero
    have few digits to lose.
    """
    if CENTERED:
        exact = over(row_sums(x, GROUP_X, LOW_FIRST), COLS)
        mean = exact.to(x.dtype)
        if x.dtype == tl.float64:  # no wider type: the mean of what the first one leaves
            rest = tl.where(inside, x - mean[:, None, None], 0.0)
            rest = over(row_sums(rest, True, LOW_FIRST), COLS)
            exact = mean + rest
            part = exact - mean
            residual = (mean - (exact - part)) + (rest - part)
            mean = exact
        else:
            residual = (exact - mean.to(tl.float64)).to(x.dtype)
        # zero the padding lanes: they would hold -mean and inflate the variance
        d = tl.where(inside, (x - mean[:, None, None]) - residual[:, None, None], 0.0)
    else:
        mean = tl.zeros([x.shape[0]], x.dtype)
        residual = mean
        d = x
    return mean, residual, over(row_sums(d * d, True, LOW_FIRST), COLS)


@triton.jit
def rstd_of(total, dtype: tl.constexpr):
    """Return 1 / sqrt(total); 0 for a total of 0: a constant row, with eps 0."""
    if dtype == tl.float64:
        root = tl.sqrt(total)
        return tl.where(total == 0.0, 0.0, 1.0 / root)
    else:
        narrow = total.to(tl.float32)
        rstd = tl.div_rn(tl.full(narrow.shape, 1.0, tl.float32), tl.sqrt_rn(narrow))
        return tl.where(narrow == 0.0, 0.0, rstd)


@triton.jit
def is_ordinary_total(total, dtype: tl.constexpr):
    """Tell which rows' var + eps can be relied on; not those with a NaN."""
    if dtype == tl.float64:
        return (total >= _LEAST_TOTAL_64) & (total <= _LARGEST_64)
    else:
        return (total >= _LEAST_TOTAL) & (total <= _LARGEST)


@triton.jit
def is_ordinary_rstd(rstd):
    """Tell which rstd have their full precision, far enough from the ends of their type."""
    if rstd.dtype == tl.float64:
        return (rstd > 2.0**-500) & (rstd < 2.0**500)
    else:
        return (rstd > 2.0**-64) & (rstd < 2.0**64)


@triton.jit
def are_ordinary_sums(first, second, dtype: tl.constexpr):
    """Tell which rows' sums of g and g * xhat have neither overflowed nor underflowed."""
    first = tl.abs(first)
    second = tl.abs(second)
    larger = tl.maximum(first, second)  # on a GPU not NaN where only one of them is
    if dtype == tl.float64:
        return (larger > 2.0**-900) & (first < 2.0**900) & (second < 2.0**900)
    else:
        return (larger > 2.0**-90) & (first < 2.0**90) & (second < 2.0**90)


@triton.jit
def any_row(which):
    """Tell whether there is one."""
    return tl.max(which.to(tl.int32), 0) != 0


@triton.jit
def largest_of_rows(v):
    """Return the largest magnitude of each row, infinity where one is NaN or infinite."""
    magnitude = tl.abs(v)
    magnitude = tl.where(magnitude <= magnitude, magnitude, float("inf"))
    return tl.max(tl.max(magnitude, 2), 1)


@triton.jit
def exponent_of(magnitude):
    """Return e with magnitude about 2^e, so that 2^e and 2^-e are normal numbers."""
    if magnitude.dtype == tl.float64:
        exponent = ((magnitude.to(tl.int64, bitcast=True) >> 52) & 2047).to(tl.int32) - 1023
        return tl.minimum(tl.maximum(exponent, -1022), 1022)
    else:
        exponent = ((magnitude.to(tl.int32, bitcast=True) >> 23) & 255) - 127
        return tl.minimum(tl.maximum(exponent, -126), 126)


@triton.jit
def power_of_two(exponent, dtype: tl.constexpr):
    """Return 2^exponent, a normal number."""
    if dtype == tl.float64:
        return ((exponent.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def finite_power(exponent, magnitude):
    """Return 2^-exponent, or NaN where the largest magnitude is not finite."""
    scale = power_of_two(-exponent, magnitude.dtype)
    return tl.where(magnitude < float("inf"), scale, float("nan"))


@triton.jit
def scaling_exponents(magnitude, EPS: tl.constexpr):
    """Return e for rows that are to be multiplied by 2^-e; NaN times that for what is not finite.

    0 where eps would then be all that is left of var + eps: it might overflow, and need not.
    """
    exponent = exponent_of(magnitude)
    scale = power_of_two(-exponent, tl.float64)
    exponent = tl.where(EPS * scale * scale < _ALL_OF_THE_TOTAL, exponent, 0)
    return exponent, finite_power(exponent, magnitude)


@triton.jit
def scaled_rstd(variance, exponent, scale, mean, residual, EPS: tl.constexpr):
    """Return exponent and normalizer of rows from the statistics of the rows times 2^-exponent.

    For a constant row eps is all there is, and might not survive scaling: it is not scaled.
    """
    constant = variance == 0.0
    back = power_of_two(exponent, scale.dtype)
    mean = tl.where(constant, mean * back, mean)
    residual = tl.where(constant, residual * back, residual)
    scale = tl.where(constant, 1.0, scale)
    exponent = tl.where(constant, 0, exponent)
    wide = power_of_two(-exponent, tl.float64)
    total = variance + EPS * wide * wide
    rstd = tl.where(total == 0.0, 0.0, 1.0 / tl.sqrt(total)).to(scale.dtype)
    return exponent, Normalizer(scale, mean, residual, rstd)


@triton.jit
def scaled_statistics(
    x,
    inside,
    EPS: tl.constexpr,
    COLS: tl.constexpr,
    GROUP_X: tl.constexpr,
    LOW_FIRST: tl.constexpr,
    CENTERED: tl.constexpr,
):
    """Return exponent and normalizer of rows, measured times 2^-exponent.

    For rows whose own statistics leave the range of their type. A row that is not finite gets NaN.
    """
    exponent, scale = scaling_exponents(largest_of_rows(x), EPS)
    mean, residual, variance = moments(
        x * scale[:, None, None], inside, COLS, GROUP_X, LOW_FIRST, CENTERED
    )
    return scaled_rstd(variance, exponent, scale, mean, residual, EPS)


@triton.jit
def chosen(which, new, old):
    """Return the new normalizer for the rows of `which`, the old one for others."""
    return Normalizer(
        tl.where(which, new.scale, old.scale),
        tl.where(which, new.mean, old.mean),
        tl.where(which, new.residual, old.residual),
        tl.where(which, new.rstd, old.rstd),
    )


@triton.jit
def measured_again(
    x,
    inside,
    which,
    normalizer,
    EPS: tl.constexpr,
    COLS: tl.constexpr,
    GROUP_X: tl.constexpr,
    LOW_FIRST: tl.constexpr,
    CENTERED: tl.constexpr,
):
    """Return exponent and normalizer: scaled for the rows of `which`, for others 0 and as given."""
    exponent = tl.zeros([x.shape[0]], tl.int32)
    if any_row(which):
        new_exponent, new = scaled_statistics(x, inside, EPS, COLS, GROUP_X, LOW_FIRST, CENTERED)
        exponent = tl.where(which, new_exponent, exponent)
        normalizer = chosen(which, new, normalizer)
    return exponent, normalizer


@triton.jit
def normalized(x, normalizer, CENTERED: tl.constexpr):
    """Return xhat."""
    x = x * normalizer.scale[:, None, None]
    rstd = normalizer.rstd[:, None, None]
    if CENTERED:
        offset = -(normalizer.residual * normalizer.rstd)[:, None, None]
        return tl.fma(x - normalizer.mean[:, None, None], rstd, offset)
    else:
        return x * rstd


@triton.jit
def store_normalizer(base, normalizer, rows, row, live):
    """Store the rows' normalizer in (4, rows)."""
    tl.store(base + row, normalizer.scale, mask=live)
    tl.store(base + rows + row, normalizer.mean, mask=live)
    tl.store(base + 2 * rows + row, normalizer.residual, mask=live)
    tl.store(base + 3 * rows + row, normalizer.rstd, mask=live)


@triton.jit
def load_normalizer(base, rows, row, live):
    """Load the rows' normalizer from (4, rows); one for xhat = 0 where there is no row."""
    return Normalizer(
        tl.load(base + row, mask=live, other=1.0),
        tl.load(base + rows + row, mask=live, other=0.0),
        tl.load(base + 2 * rows + row, mask=live, other=0.0),
        tl.load(base + 3 * rows + row, mask=live, other=0.0),
    )
