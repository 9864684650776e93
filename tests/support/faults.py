"""Wrong layer norms: the model with one step of the arithmetic broken.

Somebody has shipped each of these faults, or could have. test_planted_faults.py names the check
that catches it.
"""

import numpy as np
from layouts import from_rows, rows_of
from model import Model, native, wide


class EpsOutsideTheRoot(Model):
    def rstd(self, variance, eps):
        return 1 / (np.sqrt(variance) + eps)


class EpsOmitted(Model):
    def rstd(self, variance, eps):
        return 1 / np.sqrt(variance)


class UnbiasedVariance(Model):
    def variance(self, rows, deviation):
        return np.square(deviation).sum(axis=1, keepdims=True) / max(rows.shape[1] - 1, 1)


class MeanOfSquaresMinusSquareOfMean(Model):
    def variance(self, rows, deviation):
        x = rows.astype(np.float32)
        squares, mean = np.square(x).mean(axis=1, keepdims=True), x.mean(axis=1, keepdims=True)
        return np.maximum(squares - mean * mean, 0).astype(rows.dtype)


class SquaresOverflow(Model):
    def variance(self, rows, deviation):
        squares = np.square(deviation.astype(np.float32))
        return squares.mean(axis=1, keepdims=True).astype(rows.dtype)


class SumOverflows(Model):
    def mean(self, rows):
        mean = rows.astype(np.float32).sum(axis=1, keepdims=True) / np.float32(rows.shape[1])
        return mean.astype(rows.dtype)


class StatisticsIn16Bits(Model):
    def mean(self, rows):
        return super().mean(rows).astype(np.float16).astype(rows.dtype)

    def residual(self, rows, mean):
        return np.zeros_like(mean)


class Float32MeanAlone(Model):
    def residual(self, rows, mean):
        return np.zeros_like(mean)


class ResidualDroppedInBackward(Model):
    def residual_in_backward(self, rows, mean, stats):
        return np.zeros_like(mean)


class StatisticsOfAnotherRow(Model):
    def rstd(self, variance, eps):
        return np.roll(super().rstd(variance, eps), 1, axis=0)


class TailMissingFromTheVariance(Model):
    def variance(self, rows, deviation):
        whole = max(rows.shape[1] // 16 * 16, 1)
        return np.square(deviation[:, :whole]).mean(axis=1, keepdims=True)


class PaddingInTheVariance(Model):
    """The last vector is padded with zeros, which are not zero once the mean is subtracted."""

    def variance(self, rows, deviation):
        padding, mean = -rows.shape[1] % 16, (rows - deviation)[:, :1]
        squares = np.square(deviation).sum(axis=1, keepdims=True) + padding * mean * mean
        return squares / rows.shape[1]


class SubnormalsFlushedToZero(Model):
    def rows(self, x, axis):
        rows = super().rows(x, axis)
        return np.where(np.abs(rows) < np.finfo(np.float32).smallest_normal, 0, rows)


class NanIgnored(Model):
    def rows(self, x, axis):
        return np.nan_to_num(super().rows(x, axis), posinf=0.0, neginf=0.0)


class InfinityMakesTheOthersZero(Model):
    """The mean square is infinite and rstd is 0, so the finite elements become 0 in RMS norm."""

    def not_finite_is_nan(self, rows, rstd):
        return rstd


class NanSpreadsOverTheBatch(Model):
    def not_finite_is_nan(self, rows, rstd):
        return rstd + 0 * rows.sum()


class ZeroByZeroInConstantRows(Model):
    def xhat(self, deviation, rstd):
        return deviation * rstd


class RoundedMeanOfConstantRows(Model):
    def mean(self, rows):
        sums = rows.astype(np.float32).cumsum(axis=1)[:, -1:]
        return (sums / np.float32(rows.shape[1])).astype(rows.dtype)

    def residual(self, rows, mean):
        return np.zeros_like(mean)


class BiasBeforeWeight(Model):
    def affine(self, xhat, factor, bias):
        return xhat * factor if bias is None else super().affine(xhat, 1.0, bias) * factor


class BiasIgnoredWithoutWeight(Model):
    def affine(self, xhat, factor, bias):
        return super().affine(xhat, factor, None if np.isscalar(factor) else bias)


class ZeroCenteredWeightNotShifted(Model):
    def factor(self, weight, zero_centered):
        return super().factor(weight, False)


class ZeroCenteredWeightRoundedTo16Bits(Model):
    def factor(self, weight, zero_centered):
        factor = super().factor(weight, zero_centered)
        return factor if weight is None else factor.astype(weight.dtype).astype(factor.dtype)


class RoundedTwice(Model):
    """xhat is rounded to x's type before weight and bias are applied."""

    def forward(self, x, *args, **options):
        self.dtype = native(x.dtype)
        return super().forward(x, *args, **options)

    def affine(self, xhat, factor, bias):
        return super().affine(xhat.astype(self.dtype).astype(xhat.dtype), factor, bias)


class TruncatedInsteadOfRounded(Model):
    def rounded(self, values, x, axis):
        nearest = values.astype(native(x.dtype))
        too_large = np.abs(nearest.astype(values.dtype)) > np.abs(values)
        bits = nearest.view(f"u{x.itemsize}") - too_large.astype(f"u{x.itemsize}")
        return from_rows(bits.view(nearest.dtype), x.shape, axis)


class RmsNormCentered(Model):
    def variance(self, rows, deviation):
        return super().variance(rows, deviation - deviation.mean(axis=1, keepdims=True))


class MeanOfGDropped(Model):
    def mean_of_g(self, g, centered):
        return 0.0


class ProjectionDropped(Model):
    def projection(self, g, xhat):
        return 0.0


class MeanOfGInRmsNorm(Model):
    def mean_of_g(self, g, centered):
        return super().mean_of_g(g, True)


class WeightMissingFromDx(Model):
    def dx(self, g, xhat, rstd, centered):
        return super().dx(g / self.weight, xhat, rstd, centered)

    def factor(self, weight, zero_centered):
        self.weight = super().factor(weight, zero_centered)
        return self.weight


class GradientSumsOverflow(Model):
    def projection(self, g, xhat):
        sums = (g * xhat).astype(np.float32).sum(axis=1, keepdims=True)
        return sums.astype(g.dtype) / g.shape[1]


class ParametersAveragedOverRows(Model):
    def summed(self, terms, dtype):
        return terms.mean(axis=0).astype(dtype)


class ParametersSummedIn16Bits(Model):
    def summed(self, terms, dtype):
        return terms.astype(dtype).cumsum(axis=0, dtype=dtype)[-1]


class ParametersSummedOneByOne(Model):
    """In float32, but the error grows with the number of rows."""

    def summed(self, terms, dtype):
        return terms.astype(np.float32).cumsum(axis=0)[-1].astype(dtype)


class LastRowsMissingFromParameters(Model):
    def summed(self, terms, dtype):
        return super().summed(terms[: max(len(terms) // 4 * 4, 1)], dtype)


class FirstMembersParametersForAll(Model):
    def of_rows(self, parameter, x, axis):
        rows = super().of_rows(parameter, x, axis)
        return rows if rows is None else rows[:1]


class ParametersSummedOverAllMembers(Model):
    def summed_of_members(self, terms, x, axis, stats, dtype):
        own = super().summed_of_members(terms, x, axis, stats, dtype)
        kept = tuple(a for a in range(own.ndim) if a not in axis) if own.ndim == x.ndim else ()
        return np.broadcast_to(own.sum(kept, keepdims=True), own.shape).astype(dtype)


class ParametersSummedOverTheMembersAxis(Model):
    """Over the first kept axis, whichever axis the parameters vary along."""

    def summed_of_members(self, terms, x, axis, stats, dtype):
        shape = stats.parameter_shape
        if len(shape) == len(axis):
            return super().summed_of_members(terms, x, axis, stats, dtype)
        sums = from_rows(terms, x.shape, axis).sum(0).astype(dtype)
        return np.resize(sums, shape)


class LastAxisOnly(Model):
    def rows(self, x, axis):
        rows = super().rows(x, axis)
        return rows if len(axis) == 1 else self.of_the_last(rows, x.shape[axis[-1]])

    def of_the_last(self, rows, cols):
        parts = rows.reshape(len(rows), -1, cols)
        return ((parts - parts.mean(-1, keepdims=True)) / parts.std(-1, keepdims=True)).reshape(
            rows.shape
        )


class StridesIgnored(Model):
    """Reads the memory behind a view from its start, as if the view were contiguous."""

    def rows(self, x, axis):
        whole = x if x.base is None else x.base
        read = whole.reshape(-1).view(native(x.dtype))[: x.size].reshape(x.shape)
        return rows_of(read, axis).astype(wide(x.dtype), order="C")


class SumNormalizedBeforeRounding(Model):
    def rows_of_total(self, stored, exact):
        return exact


class GateOnTheOtherSide(Model):
    def gated_forward(self, gate, *arguments, norm_before_gate, **options):
        options["norm_before_gate"] = not norm_before_gate
        return super().gated_forward(gate, *arguments, **options)


class NormRoundedBeforeTheGate(Model):
    def gated(self, n, dtype, gate, activation):
        return super().gated(n.astype(native(dtype)).astype(n.dtype), dtype, gate, activation)


class DerivativeOfTheOtherActivation(Model):
    def activated(self, gate, activation):
        act, _ = super().activated(gate, activation)
        other = {"silu": "sigmoid", "sigmoid": "silu"}[activation]
        return act, super().activated(gate, other)[1]


class DgateWithoutBias(Model):
    def bias_of_dgate(self, bias):
        return None


class DtotalDropped(Model):
    def with_dtotal(self, dx, dtotal, dtype):
        return dx


class DxRoundedBeforeDtotalIsAdded(Model):
    def with_dtotal(self, dx, dtotal, dtype):
        return dx.astype(native(dtype)).astype(dx.dtype) + dtotal


class BitsOfTheMean(Model):
    """The float32 mean of some rows is one unit in the last place larger."""

    def chosen(self, rows):
        raise NotImplementedError

    def mean(self, rows):
        mean = super().mean(rows)
        larger = np.nextafter(mean.astype(np.float32), np.float32(np.inf)).astype(mean.dtype)
        return np.where(self.chosen(rows), larger, mean)

    def residual(self, rows, mean):
        return np.zeros_like(mean)


class BitsDependOnTheBatch(BitsOfTheMean):
    def chosen(self, rows):
        return len(rows) % 4 == 1


class BitsDependOnThePlace(BitsOfTheMean):
    def chosen(self, rows):
        return np.arange(len(rows))[:, None] % 4 == 3


class BitsDependOnAlignment(BitsOfTheMean):
    def forward(self, x, *args, **options):
        self.misplaced = x.ctypes.data % 64 != 0
        return super().forward(x, *args, **options)

    def chosen(self, rows):
        return self.misplaced


class BitsDependOnThreads(Model):
    threads = 1

    def set_num_threads(self, count):
        self.threads = count

    def summed(self, terms, dtype):
        parts = np.array_split(terms.astype(np.float32), self.threads)
        return sum(part.cumsum(axis=0)[-1] for part in parts).astype(dtype)


class BitsDependOnTheRun(Model):
    runs = 0

    def set_num_threads(self, count):
        pass

    def summed(self, terms, dtype):
        self.runs += 1
        order = np.random.default_rng(self.runs).permutation(len(terms))
        return terms[order].astype(np.float32).cumsum(axis=0)[-1].astype(dtype)
