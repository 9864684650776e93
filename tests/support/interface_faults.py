"""Wrong front ends: right arithmetic, but wrong types, writes, checks or messages."""

from typing import Any

import numpy as np
from model import Model, native

import layernorm.numpy as ours


class WritesToX(Model):
    def forward(self, x, *args, **options):
        y, stats = super().forward(x.copy(), *args, **options)
        x[...] = y
        return y, stats


class WritesToDy(Model):
    def backward(self, dy, *args, **options):
        gradients = super().backward(dy, *args, **options)
        dy[...] = 0
        return gradients


class LeavesTheTailOfOut(Model):
    def deliver(self, y, out):
        if out is None:
            return y
        whole = y.shape[-1] // 8 * 8
        out[..., :whole] = y[..., :whole]
        return out


class IgnoresOut(Model):
    def deliver(self, y, out):
        return y


class ReadsWhatItWroteInPlace(Model):
    def forward(self, x, *args, out=None, **options):
        if out is not None:
            x[1:] = super().forward(x, *args, **options)[0][1:]
        return super().forward(x, *args, out=out, **options)


class PromotedToTheParametersType(Model):
    def affine(self, xhat, factor, bias):
        self.type = np.dtype(np.float32) if bias is None else bias.dtype
        return super().affine(xhat, factor, bias)

    def rounded(self, values, x, axis):
        return super().rounded(values, x, axis).astype(self.type)


class GradientsInTheTypeOfX(Model):
    def backward(self, dy, x, *args, **options):
        gradients = super().backward(dy, x, *args, **options)
        return tuple(None if g is None else g.astype(native(x.dtype)) for g in gradients)


class StatisticsInTheTypeOfX(Model):
    def saved(self, statistic, x, axis):
        return super().saved(statistic, x, axis).astype(native(x.dtype))


class Wrapped:
    """Our own front end, for a fault to wrap."""

    def __getattr__(self, name: str) -> Any:
        return getattr(ours, name)


class AcceptsIntegers(Wrapped):
    def layer_norm(self, x, *args, **options):
        return ours.layer_norm(np.asarray(x, np.float32), *args, **options)


class AcceptsPartialOverlap(Wrapped):
    def layer_norm_forward(self, x, *args, out=None, **options):
        y, stats = ours.layer_norm_forward(x, *args, **options)
        out[...] = y
        return out, stats


class AcceptsNegativeEps(Wrapped):
    def layer_norm(self, x, *args, eps=1e-5, **options):
        return ours.layer_norm(x, *args, eps=abs(eps), **options)


class BroadcastsTheWeight(Wrapped):
    def layer_norm(self, x, weight, *args, **options):
        return ours.layer_norm(x, np.resize(weight, x.shape[-1]), *args, **options)


class WritesOutBeforeItRefuses(Wrapped):
    def layer_norm(self, *args, out, **options):
        if isinstance(out, np.ndarray) and out.flags.writeable:
            out[...] = 0
        return ours.layer_norm(*args, out=out, **options)


class GivesNoReason(Wrapped):
    """An error of the right type that does not say what came, what was expected or what to do."""

    def layer_norm(self, *args, **options):
        try:
            return ours.layer_norm(*args, **options)
        except (TypeError, ValueError) as error:
            raise type(error)("invalid argument") from None
