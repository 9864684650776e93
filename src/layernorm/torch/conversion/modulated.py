"""Norms whose results are scaled and shifted by tensors, as adaptive norms are: in one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.modules.module import _has_any_global_hook

from layernorm.torch import arguments
from layernorm.torch.autograd import requires_gradient
from layernorm.torch.functional import layer_norm, rms_norm

_ORDINARY = (Tensor, nn.Parameter)


@dataclass(frozen=True)
class Modulated:
    """A forward that modulates the results of its module's norms, written anew with `modulated`.

    Attributes:
        source: of the new forward, a function of that name.
        names: what the source uses from outside, besides torch, with the values.
        given: the arguments that are not None in the calls that are served.
        others: the other arguments, with their default values, which they have in these calls.
        reads: the attributes that the old forward reads, as `class_or_value` gave them at the swap.
    """

    source: str
    names: tuple[tuple[str, Any], ...]
    given: tuple[str, ...]
    others: tuple[tuple[str, Any], ...]
    reads: tuple[tuple[str, Any], ...] = ()

    def serves(self, module: nn.Module, given: dict[str, Any]) -> bool:
        """Tell whether a trial has shown that the new forward does what the old one would."""
        return (
            not (torch.jit.is_tracing() or torch.onnx.is_in_onnx_export())
            and all(given.get(name) is not None for name in self.given)
            and all(given.get(name, value) is value for name, value in self.others)
            and all(is_same(value, class_or_value(module, name)) for name, value in self.reads)
        )

    def forward(self) -> Callable[..., Any]:
        """Return the new forward, a function of the module and the old one's arguments."""
        scope: dict[str, Any] = {"torch": torch, **dict(self.names)}
        exec(compile(self.source, "<forward made by layernorm.torch.convert>", "exec"), scope)
        return scope["forward"]


class Parts(NamedTuple):
    """What a norm computes: the arguments of `layer_norm`, sizes None for those of x's last axis.

    centered is False for RMS norm.
    """

    centered: bool
    zero_centered_weight: bool
    sizes: Sequence[int] | None
    weight: Tensor | None
    bias: Tensor | None
    eps: Any


def modulated(norm: Any, x: Any, factor: Any, shift: Any = None) -> Any:
    """Return norm(x) * factor + shift; in one call, where that gives the same.

    Args:
        norm: a module, converted or not.
        x, factor, shift: tensors that broadcast against each other; shift may be None.
    """
    found: Any = getattr(type(norm), "_layernorm_made_from", (None, None))[1]
    parts = None if found is None or _has_hooks(norm) else found.parts(norm)
    if parts is None or not (_fits(parts, x, factor, shift) and found.serves(norm, x)):
        y = norm(x) * factor
        return y if shift is None else y + shift
    factor, shift = widened(factor, x), widened(shift, x)
    if parts.weight is not None:
        # In float32 for 16 bits, so that the products are not rounded.
        factor, weight = (_wide(each) for each in (factor, parts.weight))
        if parts.bias is not None:
            bias = _wide(parts.bias) * factor
            shift = bias if shift is None else bias + shift
        factor = factor * (1 + weight if parts.zero_centered_weight else weight)
    sizes = _sizes(parts, x)
    if parts.centered:
        shift = None if shift is None else shift.to(factor.dtype)
        return layer_norm(x, sizes, factor, shift, parts.eps)
    y = rms_norm(x, sizes, factor, parts.eps)
    return y if shift is None else y + shift


def _fits(parts: Parts, x: Any, *given: Any) -> bool:
    """Tell whether our norm takes x and, as weight and bias, the tensors given."""
    tensors = [x, *(each for each in given if each is not None)]
    return all(
        type(each) in _ORDINARY
        and each.layout is torch.strided
        and not each.is_nested
        and each.device == x.device
        and (each.dtype == x.dtype or _is_narrower(each, x))
        and _broadcasts(each.shape, x.shape, len(_sizes(parts, x)))
        for each in tensors
    ) and not (
        not is_compiling()
        and any(each.is_inference() for each in tensors)  # which no node may save
        and requires_gradient(*tensors)
    )


def _broadcasts(shape: Sequence[int], to: Sequence[int], number_of_sizes: int) -> bool:
    return (
        number_of_sizes <= len(shape) <= len(to)
        and shape[-number_of_sizes:] == to[-number_of_sizes:]
        and all(own in (1, of_x) for own, of_x in zip(shape, to[-len(shape) :], strict=True))
    )


def _sizes(parts: Parts, x: Tensor) -> Sequence[int]:
    return x.shape[-1:] if parts.sizes is None else parts.sizes


def _has_hooks(norm: Any) -> bool:
    """Tell whether a call of the module runs more than the forward of its class."""
    return bool(
        "forward" in vars(norm)
        or norm._forward_hooks
        or norm._forward_pre_hooks
        or norm._backward_hooks
        or norm._backward_pre_hooks
        or _has_any_global_hook()
    )


def widened(given: Any, x: Tensor) -> Any:
    """Convert a 16-bit tensor to float32 if x is; what else differs in type stays."""
    return given.to(x.dtype) if given is not None and _is_narrower(given, x) else given


def _is_narrower(given: Tensor, x: Tensor) -> bool:
    return x.dtype == torch.float32 and given.element_size() == 2


def _wide(given: Tensor) -> Tensor:
    return given.to(arguments.compute_type(given.dtype))


def value_of(module: nn.Module, name: str) -> Any:
    """Return the attribute, of a method its function; ... if there is none."""
    value = getattr(module, name, ...)
    return value.__func__ if isinstance(value, MethodType) else value


def class_or_value(module: nn.Module, name: str) -> Any:
    """Return the attribute as `value_of` does, but of a module the class before `convert`."""
    value = value_of(module, name)
    if not isinstance(value, nn.Module):
        return value
    return vars(type(value)).get("_layernorm_made_from", (type(value),))[0]


def is_same(value: Any, now: Any) -> bool:
    """Tell whether an attribute is what it was."""
    return now is value or (type(now) is type(value) and now == value)
