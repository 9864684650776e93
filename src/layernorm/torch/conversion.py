"""Replaces a model's norms by ours, after a trial that their results agree."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from layernorm.torch.layers import LayerNorm, RMSNorm

_EPS_NAMES = ("variance_epsilon", "eps", "epsilon", "norm_eps")

# How far the trial's results may differ: by the rounding of a few float32 operations (24 bits).
_TOLERANCE = 2.0**-18


@dataclass
class Conversion:
    """The result of `convert`: names of modules, with the class that each had.

    Attributes:
        swapped: those that were replaced.
        left: those that look like a norm but were not replaced, with the reason.
    """

    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"swapped {name}: {kind}" for name, kind in self.swapped.items()]
        lines += [f"left    {name}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines) or "no norm was found"


def convert(model: nn.Module) -> Conversion:
    """Replace every layer norm and RMS norm of `model` by ours, in place, with its parameters.

    PyTorch's own modules become ours. A module of another class is tried on rows that are not
    centered and a weight that is neither ones nor zeros. It is replaced if its results are those of
    our layer norm, our RMS norm, or our RMS norm with 1 + weight, over the last axis or axis 1.
    Such a module may have rounded to a 16-bit type before it applied the weight; ours rounds once.

    Args:
        model: any module, in training or not; it is not called as a whole.
    Returns: what was replaced, and what was not and why.
    Raises: TypeError if model is not a module; ValueError if the model itself is a norm of another
        class.
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
                    f"the model itself is a {kind}, expected a model that contains norms: "
                    f"use {found!r}"
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
    """Return the module of ours with the same results, or the reason why there is none."""
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
        return f"whose eps is not a float under the name {' or '.join(_EPS_NAMES)}"
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
    """Compare both on the CPU in float32, with parameters made for the trial."""
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
            # Rows so small that eps matters, to tell how it is added.
            small = rows * candidate.eps**0.5 if candidate.eps else rows
            expected_small = torch.func.functional_call(module, trial, (small,))
            got_small = torch.func.functional_call(candidate, trial, (small,))
    except Exception:  # any error of a module of another class means that it differs
        return False
    return _is_close(got, expected) and _is_close(got_small, expected_small)


def _is_close(got: Tensor, expected: object) -> bool:
    return (
        isinstance(expected, Tensor)
        and expected.shape == got.shape
        and expected.dtype == got.dtype
        and bool((got - expected).abs().max() <= _TOLERANCE * expected.abs().max())
    )
