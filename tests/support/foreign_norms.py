"""Norms as other libraries write them, for the tests of `layernorm.torch.convert`."""

from enum import Enum
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn


def one_thread():
    """Run a test with one thread: PyTorch's own norms start more for a few rows, which then wait.

    To be made a fixture.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class LlamaNorm(nn.Module):
    """RMS norm as in transformers: float32 inside, rounded before the weight."""

    def __init__(self, cols, offset=0.0, eps_outside=False, round_first=True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cols))
        self.variance_epsilon = 1e-6
        self.offset, self.eps_outside, self.round_first = offset, eps_outside, round_first

    def forward(self, hidden_states):
        widened = hidden_states.float()
        variance = widened.pow(2).mean(-1, keepdim=True)
        if self.eps_outside:
            xhat = widened / (variance.sqrt() + self.variance_epsilon)
        else:
            xhat = widened * torch.rsqrt(variance + self.variance_epsilon)
        if self.round_first:
            return (self.offset + self.weight) * xhat.to(hidden_states.dtype)
        return ((self.offset + self.weight.float()) * xhat).to(hidden_states.dtype)


class EditedNorm(nn.LayerNorm):
    """Does what its attribute `edit` says, which may be set later."""

    edit = None

    def forward(self, x):
        y = super().forward(x)
        return y if self.edit is None else y * self.edit


class ListeningNorm(nn.LayerNorm):
    """Calls whatever is in its list of listeners, and may be switched off."""

    is_on = True

    def __init__(self, cols) -> None:
        super().__init__(cols)
        self.listeners = []

    def forward(self, x):
        if not self.is_on:
            return x
        y = super().forward(x)
        for each in self.listeners:
            y = each(y)
        return y


class Mode(Enum):
    """An option of OptionsNorm."""

    PLAIN = 0
    DOUBLE = 1


class OptionsNorm(nn.LayerNorm):
    """Has options of many kinds, each with the value that it usually has; y doubles otherwise."""

    mode = Mode.PLAIN

    def __init__(self, cols) -> None:
        super().__init__(cols, bias=False)
        self.scaled, self.number, self.names = False, 1.0, ("a", 1)
        self.dtype, self.place, self.sizes = torch.float32, torch.device("cpu"), [cols]
        self.kind, self.function = nn.LayerNorm, torch.rsqrt

    def factor(self):
        return 1

    def forward(self, x):
        is_usual = (
            self.scaled is False
            and self.mode is Mode.PLAIN
            and self.number == 1
            and self.names == ("a", 1)
            and self.dtype is torch.float32
            and self.place.type == "cpu"
            and self.sizes == [len(self.weight)]
            and self.kind is nn.LayerNorm
            and self.function is torch.rsqrt
            and self.bias is None
            and not hasattr(self, "extra")
            and getattr(self, "adapter", None) is None
            and self.factor() == 1
        )
        y = super().forward(x)
        return y if is_usual else 2 * y


class Meter:
    """Counts, and may be called."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, x):
        self.count += 1
        return x


class MeteredNorm(nn.LayerNorm):
    def __init__(self, cols) -> None:
        super().__init__(cols)
        self.meter = Meter()

    def forward(self, x):
        return super().forward(self.meter(x))


class RecordingNorm(nn.LayerNorm):
    """Calls a method of an object."""

    def __init__(self, cols) -> None:
        super().__init__(cols)
        self.seen = []
        self.record = self.seen.append

    def forward(self, x):
        self.record(len(x))
        return super().forward(x)


class FallbackNorm(MeteredNorm):
    """Does without what fails."""

    def forward(self, x):
        try:
            return super().forward(x)
        except Exception:
            return nn.LayerNorm.forward(self, x)


def note(x):
    """Note how long x is."""
    SEEN.append(len(x))


class NotingNorm(nn.LayerNorm):
    def forward(self, x):
        note(x)
        return super().forward(x)


class InnerNotingNorm(nn.LayerNorm):
    """Does it in a function within a method."""

    def tell(self, x):
        return [note(each) for each in (x,)]

    def forward(self, x):
        self.tell(x)
        return super().forward(x)


KNOWN = {}


class Registry(type):
    """Puts the classes that it makes into KNOWN."""

    def __new__(mcs, name, bases, contents):
        KNOWN[name] = super().__new__(mcs, name, bases, contents)
        return KNOWN[name]


class RegisteredNorm(nn.LayerNorm, metaclass=Registry):
    pass


class AveragingNorm(nn.LayerNorm):
    """Keeps a running mean in a tensor that is no buffer."""

    def __init__(self, cols) -> None:
        super().__init__(cols)
        self.running = torch.zeros(cols)

    def forward(self, x):
        with torch.no_grad():
            self.running.mul_(0.9).add_(x.flatten(0, -2).mean(0), alpha=0.1)
        return super().forward(x)


SEEN = []


class LoggingNorm(nn.LayerNorm):
    def forward(self, x):
        SEEN.append(len(x))
        return super().forward(x)


calls = 0


class GloballyCountingNorm(nn.LayerNorm):
    def forward(self, x):
        global calls
        calls += 1
        return super().forward(x)


class PrintingNorm(nn.LayerNorm):
    def forward(self, x):
        print("called")
        return super().forward(x)


def mean_over_ranks(x):
    """Return the mean over all processes, if there are several."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(x)
        x = x / torch.distributed.get_world_size()
    return x


class WeightedNorm(nn.Module):
    """What the norms below have in common."""

    def __init__(self, cols) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cols))
        self.eps = 1e-6


class ParallelNorm(WeightedNorm):
    """Llama's, of rows that are split over processes."""

    def forward(self, x):
        variance = mean_over_ranks(x.pow(2).mean(-1, keepdim=True))
        return self.weight * (x * torch.rsqrt(variance + self.eps))


class MeanOverRanks(torch.autograd.Function):
    """The mean over all processes, as an operation with a gradient."""

    @staticmethod
    def forward(ctx, x):
        return mean_over_ranks(x)

    @staticmethod
    def backward(ctx, dy):
        return mean_over_ranks(dy)


class OperationParallelNorm(WeightedNorm):
    def forward(self, x):
        variance = MeanOverRanks.apply(x.pow(2).mean(-1, keepdim=True))
        return self.weight * (x * torch.rsqrt(variance + self.eps))


weight = mean = []  # the names of attributes below


class NamesakeNorm(nn.Module):
    """Its attributes and methods have names of things outside."""

    def __init__(self, cols) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cols))
        self.print = 1e-6

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.print))


class WithoutNaNNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(torch.nan_to_num(x))


class CheckingNorm(nn.LayerNorm):
    def forward(self, x):
        if not torch.isfinite(x).all():
            raise FloatingPointError
        return super().forward(x)


class HookedNorm(nn.LayerNorm):
    """Takes NaN out of dx."""

    def forward(self, x):
        if x.requires_grad:
            x.register_hook(torch.nan_to_num)
        return super().forward(x)


class OutputHookedNorm(nn.LayerNorm):
    """Takes NaN out of dy."""

    def forward(self, x):
        y = super().forward(x)
        if y.requires_grad:
            y.register_hook(torch.nan_to_num)
        return y


class GroupedNorm(nn.LayerNorm):
    """Has lists in a tuple."""

    def __init__(self, cols) -> None:
        super().__init__(cols)
        self.groups = ([], [])

    def forward(self, x):
        y = super().forward(x)
        for each in self.groups[0]:
            y = each(y)
        return y


class ContiguousNorm(LlamaNorm):
    """Returns contiguous y."""

    def forward(self, hidden_states):
        return super().forward(hidden_states.contiguous())


class ManyRowsNorm(nn.LayerNorm):
    def forward(self, x):
        return x if len(x) == 1 else super().forward(x)


class NonemptyNorm(nn.LayerNorm):
    def forward(self, x):
        if not x.numel():
            raise ValueError("empty")
        return super().forward(x)


class FinalNorm(nn.LayerNorm):
    """Allows no subclasses."""

    def __init_subclass__(cls) -> None:
        raise TypeError(cls)


def make(cls, *arguments):
    """Call it."""
    return cls(*arguments)


class ReducingNorm(nn.LayerNorm):
    """Says how it is pickled, in one of several ways."""

    reduce = ""

    def __reduce__(self):
        cls = type(self)
        function, arguments = {
            "by a function": (make, (cls, self.normalized_shape)),
            "by another class": (ReducingNorm, (self.normalized_shape,)),
            "by a partial": (partial(make, cls), (self.normalized_shape,)),
        }[self.reduce]
        return function, arguments, vars(self)


class GatedNorm(LlamaNorm):
    """Mamba2's: called with a gate."""

    def forward(self, hidden_states, gate=None):
        y = super().forward(hidden_states)
        return y if gate is None else y * F.silu(gate)


class GateFirstNorm(WeightedNorm):
    """Mamba2's in transformers: normalizes groups of x * silu(gate)."""

    def __init__(self, cols, group_size, axis=-1) -> None:
        super().__init__(cols)
        self.group_size, self.axis = group_size, axis

    def forward(self, hidden_states, gate=None):
        u = hidden_states.float()
        if gate is not None:
            u = u * F.silu(gate.float())
        groups = u.view(*u.shape[:-1], -1, self.group_size)
        xhat = groups * torch.rsqrt(groups.pow(2).mean(self.axis, keepdim=True) + self.eps)
        return self.weight * xhat.view(u.shape).to(hidden_states.dtype)


class ActivationNorm(WeightedNorm):
    """Normalizes x first, and requires a gate, with an activation that is looked up."""

    def __init__(self, cols, activation) -> None:
        super().__init__(cols)
        self.activation = activation

    def forward(self, x, z):
        u = x.float()
        xhat = u * torch.rsqrt(u.pow(2).mean(-1, keepdim=True) + self.eps)
        activate = {"silu": F.silu, "sigmoid": torch.sigmoid, "gelu": F.gelu}[self.activation]
        return (self.weight.float() * xhat * activate(z.float())).to(x.dtype)


class GatedLayerNorm(nn.LayerNorm):
    """With a bias, and the gate as the first operand, so that y has its layout."""

    def forward(self, x, z):
        return torch.sigmoid(z) * super().forward(x)


class NearlyGatedNorm(LlamaNorm):
    """Returns what a function makes of its norm, x and the gate."""

    def __init__(self, cols, function) -> None:
        super().__init__(cols)
        self.function = function

    def forward(self, hidden_states, gate):
        return self.function(super().forward, hidden_states, gate)


class AdaptiveNorm(nn.Module):
    """Returns what a function makes of its norm, x, a scale and a shift."""

    def __init__(self, cols, function, norm=None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(cols, elementwise_affine=False) if norm is None else norm
        self.linear = nn.Linear(cols, 2 * cols)
        self.function = function

    def forward(self, x, emb=None):
        scale, shift = self.linear(F.silu(emb)).chunk(2, dim=-1)
        return self.function(self.norm, x, scale, shift)


class KeepingAdaptiveNorm(AdaptiveNorm):
    """Keeps the scale in an attribute, of one of its modules."""

    def forward(self, x, emb=None):
        scale, shift = self.linear(F.silu(emb)).chunk(2, dim=-1)
        self.linear.scale = scale
        return self.function(self.norm, x, scale, shift)


class ListingAdaptiveNorm(AdaptiveNorm):
    """Adds to a list of its own."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.calls = []

    def forward(self, x, emb=None):
        self.calls.append(1)
        return super().forward(x, emb)


class TrainingAdaptiveNorm(AdaptiveNorm):
    """Differs a little in training."""

    def forward(self, x, emb=None):
        y = super().forward(x, emb)
        return y * 1.01 if self.training else y


class OptionalAdaptiveNorm(AdaptiveNorm):
    """Modulates if there is something to do it with."""

    def forward(self, x, emb=None):
        return self.norm(x) if emb is None else super().forward(x, emb)


class OwnAdaptiveNorm(AdaptiveNorm):
    """Has a parameter of its own."""

    def __init__(self, cols, function) -> None:
        super().__init__(cols, function)
        self.table = nn.Parameter(torch.zeros(cols))

    def forward(self, x, emb=None):
        scale, shift = self.linear(F.silu(emb)).chunk(2, dim=-1)
        return self.function(self.norm, x, scale + self.table, shift)


class FullPrecisionAdaptiveNorm(AdaptiveNorm):
    """Enters a context."""

    def forward(self, x, emb=None):
        with torch.autocast("cpu", enabled=False):
            scale, shift = self.linear(F.silu(emb)).chunk(2, dim=-1)
        return self.function(self.norm, x, scale, shift)


class ResidualNorm(LlamaNorm):
    def forward(self, x, *residual):
        return super().forward(sum(residual, x))


class ChannelsFirstNorm(nn.Module):
    """As ConvNeXt's first version: a formula, which keeps the memory format."""

    def __init__(self, cols) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(cols)), nn.Parameter(torch.randn(cols))
        self.eps = 1e-6

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        xhat = (x - mean) / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * xhat + self.bias[:, None, None]


class FormulaNorm(nn.Module):
    """Layer norm as a formula, which keeps x - mean for the backward, not x."""

    def __init__(self, cols) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(cols)), 1e-6

    def forward(self, x):
        centered = x - x.mean(-1, keepdim=True)
        variance = centered.pow(2).mean(-1, keepdim=True)
        return self.weight * (centered * torch.rsqrt(variance + self.eps))


class LayerNorm2d(nn.LayerNorm):
    """As timm's: moves the axis, and moves it back."""

    def forward(self, x):
        y = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return y.permute(0, 3, 1, 2)


class SqueezeNorm(nn.LayerNorm):
    """SqueezeBert's: channels first, with three axes."""

    def forward(self, x):
        return nn.LayerNorm.forward(self, x.permute(0, 2, 1)).permute(0, 2, 1)


class NemotronNorm(nn.LayerNorm):
    """Layer norm with 1 + weight."""

    def forward(self, input):
        return F.layer_norm(input, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class OlmoNorm(nn.Module):
    """Without parameters, and with eps in the code."""

    def __init__(self, cols) -> None:
        super().__init__()
        self.normalized_shape = (cols,)

    def forward(self, x):
        return F.layer_norm(x.float(), self.normalized_shape, None, None, eps=1e-5).to(x.dtype)


class L2Norm(nn.Module):
    """Llama 4's, without parameters and sizes."""

    def __init__(self, eps=1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class GatedL2Norm(L2Norm):
    """Without parameters."""

    def forward(self, x, gate):
        return super().forward(x * F.silu(gate))


class WeightlessNorm(L2Norm):
    """FalconMamba's, with a buffer that it does not read."""

    def __init__(self, cols) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(cols), persistent=False)


class ScaleNorm(nn.Module):
    """With other names for weight and bias."""

    def __init__(self, cols) -> None:
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.randn(cols)), nn.Parameter(torch.randn(cols))

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.scale, self.shift, 1e-5)


class HeadsNorm(nn.Module):
    """Cohere's, of queries and keys: a weight for each head."""

    def __init__(self, cols) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, cols))
        self.eps = 1e-5

    def forward(self, x):
        return self.weight * F.layer_norm(x, x.shape[-1:], None, None, self.eps)


class DetachedNorm(LlamaNorm):
    def forward(self, hidden_states):
        variance = hidden_states.detach().pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


class NoisyNorm(LlamaNorm):
    def forward(self, hidden_states):
        noise = torch.rand_like(hidden_states) if self.training else 0.0
        return super().forward(hidden_states) + noise


class DropoutNorm(LlamaNorm):
    def forward(self, hidden_states):
        return F.dropout(super().forward(hidden_states), 0.5, self.training)


class ClampedNorm(LlamaNorm):
    def forward(self, hidden_states):
        return super().forward(hidden_states.clamp(-1e4, 1e4))


class ClampedOutputNorm(LlamaNorm):
    def forward(self, hidden_states):
        return super().forward(hidden_states).clamp(-1e4, 1e4)


class InferenceNorm(LlamaNorm):
    """Does something else without gradients."""

    def forward(self, hidden_states):
        y = super().forward(hidden_states)
        return y if torch.is_grad_enabled() else y.round()


class CountingNorm(LlamaNorm):
    calls = 0

    def forward(self, hidden_states):
        self.calls = self.calls + 1
        return super().forward(hidden_states)


class Float32OutputNorm(LlamaNorm):
    """Returns float32, whatever comes."""

    def forward(self, hidden_states):
        return super().forward(hidden_states.float())


class LayerNormAct(nn.LayerNorm):
    """timm's: more modules run after the norm."""

    def __init__(self, cols) -> None:
        super().__init__(cols)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class RunningNorm(LlamaNorm):
    """Its results depend on a buffer."""

    def __init__(self, cols) -> None:
        super().__init__(cols)
        self.register_buffer("gain", torch.ones(cols))

    def forward(self, hidden_states):
        return super().forward(hidden_states) * self.gain


class CodeEpsNorm(LlamaNorm):
    """Has an attribute that looks like eps, and does not read it."""

    def forward(self, hidden_states):
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + 1e-6))


class TensorEpsNorm(LlamaNorm):
    """Makes a tensor on the device that is the default."""

    def forward(self, hidden_states):
        eps = torch.full((1,), self.variance_epsilon, dtype=torch.float32)
        variance = hidden_states.float().pow(2).mean(-1, keepdim=True)
        xhat = hidden_states.float() * torch.rsqrt(variance + eps)
        return (self.weight.float() * xhat).to(hidden_states.dtype)
