"""Swaps a model's norms for ours, where they behave the same on the spot."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from layernorm.torch.layers import LayerNorm, RMSNorm

_EPS_NAMES = ("variance_epsilon", "eps", "epsilon", "norm_eps")

# The trial's two results may differ by rounding: float32 has 24 bits, and a norm a few operations.
_TOLERANCE = 2.0**-18


@dataclass
class Conversion:
    """What `convert` did: names of modules, with the class that each had.

    Attributes:
        swapped: those that are ours now.
        left: those whose name speaks of a norm, and that were left alone, with the reason.
    """

    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"swapped {name}: {kind}" for name, kind in self.swapped.items()]
        lines += [f"left    {name}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines) or "no norm was found"


def convert(model: nn.Module) -> Conversion:
    """Swap every layer norm and RMS norm of `model` for ours, in place, with the same parameters.

    PyTorch's own modules become ours. A module of another class is tried: it is given rows that are
    not centered and a weight that is neither ones nor zeros, and it is swapped if what it returns
    is our layer norm, our RMS norm, or that with the weight 1 + weight, over the last axis or over
    axis 1. What a module of another class did beyond that, such as rounding to a 16-bit type before
    the weight, is then done as `rms_norm` does it: rounded once.

    Args:
        model: any module, in training or not; it is not called as a whole.
    Returns: what was swapped, and what was left and why.
    Raises: TypeError for what is not a module; ValueError where the model itself is a norm of
        another class.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is of type {type(model).__name__}, expected a torch.nn.Module: pass the model"
        )
    done = Conversion()
    replacements: dict[int, nn.Module] = {}
    for name, module in list(model.named_modules()):
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        if isinstance(module, LayerNorm | RMSNorm):
            continue
        if type(module) is nn.LayerNorm:
            module.__class__ = LayerNorm
            done.swapped[name] = kind
        elif type(module) is nn.RMSNorm:
            module.__class__ = RMSNorm
            done.swapped[name] = kind
        elif _may_be_a_norm(module):
            found = _recognize(module)
            if isinstance(found, str):
                done.left[name] = f"{kind}, {found}"
            elif not name:
                raise ValueError(
                    f"the model itself is a {kind}, which has no place in a module to be swapped "
                    f"in: use {found!r}"
                )
            else:
                replacements[id(module)] = found
                done.swapped[name] = kind
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # each name of a shared module
            if id(child) in replacements:
                setattr(parent, name, replacements[id(child)])
    return done


def _may_be_a_norm(module: nn.Module) -> bool:
    if any(True for _ in module.children()):
        return False
    by_name = "norm" in type(module).__name__.lower()
    return by_name or isinstance(module, nn.LayerNorm | nn.RMSNorm)


def _recognize(module: nn.Module) -> nn.Module | str:
    """Return the module of ours that does the same, or why there is none."""
    parameters = dict(module.named_parameters(recurse=False))
    weight, bias = parameters.pop("weight", None), parameters.pop("bias", None)
    if parameters or weight is None or any(True for _ in module.buffers()):
        return "whose parameters are not a weight and a bias"
    if weight.dim() != 1:
        return f"whose weight has {weight.dim()} axes"
    if any(name.endswith("_hooks") and hooks for name, hooks in vars(module).items()):
        return "which has hooks"
    eps = next((getattr(module, name) for name in _EPS_NAMES if hasattr(module, name)), None)
    if not isinstance(eps, float):
        return f"whose eps is not found under {', '.join(_EPS_NAMES)}"
    for candidate in _candidates(weight, bias, eps):
        if _agree(module, candidate, weight, bias):
            candidate.train(module.training)
            return candidate
    return "which is neither layer norm nor RMS norm over the last axis or axis 1"


def _candidates(weight: Tensor, bias: Tensor | None, eps: float) -> Iterator[LayerNorm | RMSNorm]:
    shape = (weight.numel(),)
    for axis in (None, 1):
        layer = LayerNorm(shape, eps, bias=bias is not None, device="meta", axis=axis)
        layer.weight = weight
        if bias is not None:
            layer.bias = bias
        yield layer
        for zero_centered in (False, True) if bias is None else ():
            rms = RMSNorm(shape, eps, device="meta", axis=axis, zero_centered_weight=zero_centered)
            rms.weight = weight
            yield rms


def _agree(
    module: nn.Module, candidate: LayerNorm | RMSNorm, weight: Tensor, bias: Tensor | None
) -> bool:
    """Try both on the CPU in float32, with parameters of our own, and put the old ones back."""
    generator = torch.Generator().manual_seed(0)
    cols = weight.numel()
    shape = (2, 3, 4, cols) if candidate.axis is None else (2, cols, 3, 4)
    rows = torch.randn(shape, generator=generator) * 3 + 2
    trial = {"weight": torch.rand(cols, generator=generator) + 0.5}
    if bias is not None:
        trial["bias"] = torch.randn(cols, generator=generator)
    try:
        with torch.no_grad():
            expected = torch.func.functional_call(module, trial, (rows,))
            got = torch.func.functional_call(candidate, trial, (rows,))
            # Rows so small that eps decides, which finds where it is added, and how.
            small = rows * candidate.eps**0.5 if candidate.eps else rows
            expected_small = torch.func.functional_call(module, trial, (small,))
            got_small = torch.func.functional_call(candidate, trial, (small,))
    except Exception:  # whatever a module of another class raises, it is not one of ours
        return False
    return _is_close(got, expected) and _is_close(got_small, expected_small)


def _is_close(got: Tensor, expected: object) -> bool:
    return (
        isinstance(expected, Tensor)
        and expected.shape == got.shape
        and expected.dtype == got.dtype
        and bool((got - expected).abs().max() <= _TOLERANCE * expected.abs().max())
    )
