"""The rows of a tile: their sums and their statistics.

A row is summed in the compute type along the column axis that one thread holds in its registers,
and in float64 along the other. (Reshaping the tile to one column axis would move it through shared
memory at every sum.) The only fused multiply-adds are those written here: the kernels are compiled
with enable_fp_fusion=False. docs/derivation.md,
"Why a rounded mean is not enough" and "Rows at the ends of the range", has the reasons.
"""

from typing import NamedTuple

import triton
import triton.language as tl

# Where var + eps is outside this range, squares may have underflowed or overflowed.
_LEAST_RADICAND: tl.constexpr = tl.constexpr(2.0**-80)
_LEAST_RADICAND_64: tl.constexpr = tl.constexpr(2.0**-900)
_LARGEST: tl.constexpr = tl.constexpr((2 - 2.0**-23) * 2.0**127)
_LARGEST_64: tl.constexpr = tl.constexpr((2 - 2.0**-52) * 2.0**1023)
# From this scaled eps on, var + eps rounds to eps in float64.
_EPS_ALONE: tl.constexpr = tl.constexpr(2.0**60)


class Normalizer(NamedTuple):
    """What turns rows of x into xhat = ((x * scale - mean) - residual) * rstd. Each is (rows,).

    scale is a power of two, and not 1 only for rows whose statistics leave the range of their type.
    The unevaluated sum mean + residual is the mean of x * scale.
    """

    scale: tl.tensor
    mean: tl.tensor
    residual: tl.tensor
    rstd: tl.tensor


@triton.jit
def row_sums(v, GROUPED: tl.constexpr, LOW_FIRST: tl.constexpr):
    """Sum each row in float64. GROUPED: what one thread holds is first summed in v's type.

    LOW_FIRST: a thread holds elements along the last axis, else along the one before.
    """
    if not GROUPED:
        v = v.to(tl.float64)
    return tl.sum(tl.sum(v, 2 if LOW_FIRST else 1).to(tl.float64), 1)


@triton.jit
def over(total, COLS: tl.constexpr):
    """Return total / COLS in float64, exact if a float64 can hold the quotient."""
    n = tl.full(total.shape, COLS, tl.float64)
    inverse = tl.full(total.shape, 1.0 / COLS, tl.float64)
    quotient = total * inverse
    return tl.fma(tl.fma(-quotient, n, total), inverse, quotient)


@triton.jit
def moments(
    x,
    mask,
    COLS: tl.constexpr,
    GROUP_X: tl.constexpr,
    LOW_FIRST: tl.constexpr,
    CENTERED: tl.constexpr,
):
    """Return mean, residual and variance of the rows. The mean is mean + residual, unevaluated.

    GROUP_X: what one thread holds of x may be summed in x's type. Set for 16-bit arrays, whose
    numbers far from zero have few digits to lose.
    """
    if CENTERED:
        exact = over(row_sums(x, GROUP_X, LOW_FIRST), COLS)
        mean = exact.to(x.dtype)
        if x.dtype == tl.float64:  # no wider type: the residual is the mean of x - mean
            rest = tl.where(mask, x - mean[:, None, None], 0.0)
            rest = over(row_sums(rest, True, LOW_FIRST), COLS)
            exact = mean + rest
            part = exact - mean
            residual = (mean - (exact - part)) + (rest - part)
            mean = exact
        else:
            residual = (exact - mean.to(tl.float64)).to(x.dtype)
        # zero the padding lanes: they would hold -mean and inflate the variance
        d = tl.where(mask, (x - mean[:, None, None]) - residual[:, None, None], 0.0)
    else:
        mean = tl.zeros([x.shape[0]], x.dtype)
        residual = mean
        d = x
    return mean, residual, over(row_sums(d * d, True, LOW_FIRST), COLS)


@triton.jit
def rstd_of(radicand, dtype: tl.constexpr):
    """Return 1 / sqrt(radicand), and 0 if radicand is 0: a constant row with eps 0."""
    if dtype == tl.float64:
        root = tl.sqrt(radicand)
        return tl.where(radicand == 0.0, 0.0, 1.0 / root)
    else:
        radicand = radicand.to(tl.float32)
        rstd = tl.div_rn(tl.full(radicand.shape, 1.0, tl.float32), tl.sqrt_rn(radicand))
        return tl.where(radicand == 0.0, 0.0, rstd)


@triton.jit
def is_ordinary_radicand(radicand, dtype: tl.constexpr):
    """Tell which rows' var + eps is accurate. NaN is not."""
    if dtype == tl.float64:
        return (radicand >= _LEAST_RADICAND_64) & (radicand <= _LARGEST_64)
    else:
        return (radicand >= _LEAST_RADICAND) & (radicand <= _LARGEST)


@triton.jit
def is_ordinary_rstd(rstd):
    """Tell which rstd are far enough from the limits of their type to have full precision."""
    if rstd.dtype == tl.float64:
        return (rstd > 2.0**-500) & (rstd < 2.0**500)
    else:
        return (rstd > 2.0**-64) & (rstd < 2.0**64)


@triton.jit
def are_ordinary_sums(first, second, dtype: tl.constexpr):
    """Tell which rows' sums of g and of g * xhat have neither overflowed nor underflowed."""
    first = tl.abs(first)
    second = tl.abs(second)
    larger = tl.maximum(first, second)  # on a GPU, NaN only if both are
    if dtype == tl.float64:
        return (larger > 2.0**-900) & (first < 2.0**900) & (second < 2.0**900)
    else:
        return (larger > 2.0**-90) & (first < 2.0**90) & (second < 2.0**90)


@triton.jit
def any_row(which):
    """Tell whether `which` is true for any row."""
    return tl.max(which.to(tl.int32), 0) != 0


@triton.jit
def largest_of_rows(v):
    """Return the largest magnitude of each row, infinity if any element is not finite."""
    magnitude = tl.abs(v)
    magnitude = tl.where(magnitude <= magnitude, magnitude, float("inf"))
    return tl.max(tl.max(magnitude, 2), 1)


@triton.jit
def exponent_of(magnitude):
    """Return e with magnitude about 2^e, such that 2^e and 2^-e are normal numbers."""
    if magnitude.dtype == tl.float64:
        exponent = ((magnitude.to(tl.int64, bitcast=True) >> 52) & 2047).to(tl.int32) - 1023
        return tl.minimum(tl.maximum(exponent, -1022), 1022)
    else:
        exponent = ((magnitude.to(tl.int32, bitcast=True) >> 23) & 255) - 127
        return tl.minimum(tl.maximum(exponent, -126), 126)


@triton.jit
def power_of_two(exponent, dtype: tl.constexpr):
    """Return 2^exponent, which must be a normal number."""
    if dtype == tl.float64:
        return ((exponent.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def finite_power(exponent, magnitude):
    """Return 2^-exponent, or NaN if the magnitude is not finite."""
    scale = power_of_two(-exponent, magnitude.dtype)
    return tl.where(magnitude < float("inf"), scale, float("nan"))


@triton.jit
def scaling_exponents(magnitude, EPS: tl.constexpr):
    """Return the exponent e that each row is to be scaled by, and 2^-e; NaN if not finite.

    e is 0 where the scaled eps would dominate var + eps: it might overflow, and scaling is not
    needed.
    """
    exponent = exponent_of(magnitude)
    scale = power_of_two(-exponent, tl.float64)
    exponent = tl.where(EPS * scale * scale < _EPS_ALONE, exponent, 0)
    return exponent, finite_power(exponent, magnitude)


@triton.jit
def scaled_rstd(variance, exponent, scale, mean, residual, EPS: tl.constexpr):
    """Return exponent and normalizer of rows, given the statistics of the rows times 2^-exponent.

    A constant row is not scaled: its rstd comes from eps alone, which scaling could underflow.
    """
    constant = variance == 0.0
    back = power_of_two(exponent, scale.dtype)
    mean = tl.where(constant, mean * back, mean)
    residual = tl.where(constant, residual * back, residual)
    scale = tl.where(constant, 1.0, scale)
    exponent = tl.where(constant, 0, exponent)
    scale_64 = power_of_two(-exponent, tl.float64)
    radicand = variance + EPS * scale_64 * scale_64
    rstd = tl.where(radicand == 0.0, 0.0, 1.0 / tl.sqrt(radicand)).to(scale.dtype)
    return exponent, Normalizer(scale, mean, residual, rstd)


@triton.jit
def scaled_statistics(
    x,
    mask,
    EPS: tl.constexpr,
    COLS: tl.constexpr,
    GROUP_X: tl.constexpr,
    LOW_FIRST: tl.constexpr,
    CENTERED: tl.constexpr,
):
    """Return exponent and normalizer of rows, computed from the rows times 2^-exponent.

    For rows whose unscaled statistics leave the range of their type. Rows that are not finite get
    NaN.
    """
    exponent, scale = scaling_exponents(largest_of_rows(x), EPS)
    mean, residual, variance = moments(
        x * scale[:, None, None], mask, COLS, GROUP_X, LOW_FIRST, CENTERED
    )
    return scaled_rstd(variance, exponent, scale, mean, residual, EPS)


@triton.jit
def select(which, new, old):
    """Return the new normalizer for the rows of `which`, and the old one for the others."""
    return Normalizer(
        tl.where(which, new.scale, old.scale),
        tl.where(which, new.mean, old.mean),
        tl.where(which, new.residual, old.residual),
        tl.where(which, new.rstd, old.rstd),
    )


@triton.jit
def recompute_normalizer(
    x,
    mask,
    which,
    normalizer,
    EPS: tl.constexpr,
    COLS: tl.constexpr,
    GROUP_X: tl.constexpr,
    LOW_FIRST: tl.constexpr,
    CENTERED: tl.constexpr,
):
    """Return exponent and normalizer, recomputed with scaling for the rows of `which`.

    The other rows keep their normalizer and have exponent 0.
    """
    exponent = tl.zeros([x.shape[0]], tl.int32)
    if any_row(which):
        new_exponent, new = scaled_statistics(x, mask, EPS, COLS, GROUP_X, LOW_FIRST, CENTERED)
        exponent = tl.where(which, new_exponent, exponent)
        normalizer = select(which, new, normalizer)
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
def rest_of_one(normalizer, EPS: tl.constexpr):
    """Return 1 - mean(xhat^2) = eps * rstd^2 in float64, with the rstd of x itself."""
    root = normalizer.rstd.to(tl.float64) * normalizer.scale.to(tl.float64)
    if EPS == 0.0:
        return tl.zeros(root.shape, tl.float64)
    else:
        return EPS * root * root


@triton.jit
def store_normalizer(base, normalizer, rows, row, row_mask):
    """Store a normalizer in an array (4, rows)."""
    tl.store(base + row, normalizer.scale, mask=row_mask)
    tl.store(base + rows + row, normalizer.mean, mask=row_mask)
    tl.store(base + 2 * rows + row, normalizer.residual, mask=row_mask)
    tl.store(base + 3 * rows + row, normalizer.rstd, mask=row_mask)


@triton.jit
def load_normalizer(base, rows, row, row_mask):
    """Load a normalizer from an array (4, rows). Masked rows get one that makes xhat 0."""
    return Normalizer(
        tl.load(base + row, mask=row_mask, other=1.0),
        tl.load(base + rows + row, mask=row_mask, other=0.0),
        tl.load(base + 2 * rows + row, mask=row_mask, other=0.0),
        tl.load(base + 3 * rows + row, mask=row_mask, other=0.0),
    )
