"""Classes that run our norms in place of a forward: made from a module's own class."""

import copyreg
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from layernorm.torch import arguments
from layernorm.torch.conversion.modulated import Modulated, Parts, is_same, value_of, widened
from layernorm.torch.fallback import would_save_inference
from layernorm.torch.functional import layer_norm, rms_norm
from layernorm.torch.layers import LayerNorm, RMSNorm

# The types of x and of the parameters (None without any), whether autocast to bfloat16 is on, and
# the type of the gate (None without one).
Types = tuple[torch.dtype, torch.dtype | None, bool, torch.dtype | None]

_OURS: dict[Any, Any] = {nn.LayerNorm: LayerNorm, nn.RMSNorm: RMSNorm}

_ORDINARY = (Tensor, nn.Parameter)


@dataclass(frozen=True)
class PyTorchs:
    """One of PyTorch's own classes, exactly, and the types for which ours has the same result.

    Attributes:
        types: of the calls that are served.
    """

    types: frozenset[Types]

    def serves(self, module: nn.Module, x: Tensor) -> bool:
        """Tell whether our forward takes the call."""
        weight, bias = module.weight, getattr(module, "bias", None)
        return isinstance(x, Tensor) and _has_types(
            self.types, x, weight, bias, or_off_the_cpu=True
        )

    def norm(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return y."""
        sizes, weight, eps = module.normalized_shape, module.weight, module.eps
        if isinstance(module, LayerNorm):
            return layer_norm(x, sizes, weight, getattr(module, "bias", None), eps)
        return rms_norm(x, sizes, weight, eps)

    def parts(self, module: nn.Module) -> Parts:
        """Return what our forward computes, for `modulated`."""
        weight, bias = module.weight, getattr(module, "bias", None)
        centered = isinstance(module, nn.LayerNorm)
        return Parts(centered, False, module.normalized_shape, weight, bias, module.eps)


@dataclass(frozen=True)
class Gating:
    """How a forward that takes a gate applies it.

    Attributes:
        activation, norm_before_gate: as in `rms_norm`.
        groups: the number of groups that the last axis is divided into, each normalized by itself.
    """

    activation: str
    norm_before_gate: bool
    groups: int = 1


@dataclass(frozen=True)
class Recognized:
    """What the forward of another class computes, and the calls for which a trial has shown it.

    Attributes:
        centered, zero_centered_weight: as in `Definition`.
        sizes: the normalized sizes; None without a weight: that of x.
        axis: None for the last axes, or 1.
        weight, bias: the names of the parameters, or None.
        eps: the name of the attribute, or the value if the class has no such attribute.
        gating: None if the forward takes x alone.
        keeps_layout: y has x's memory format. Otherwise it is contiguous, in axis 1 after that axis
            has been moved to the end.
        ranks: of x.
        types: of the calls that are served.
        reads: the other attributes that the forward reads, as `value_of` gave them at the swap.
    """

    centered: bool
    zero_centered_weight: bool
    sizes: tuple[int, ...] | None
    axis: int | None
    weight: str | None
    bias: str | None
    eps: str | float
    gating: Gating | None = None
    keeps_layout: bool = True
    ranks: frozenset[int] = frozenset()
    types: frozenset[Types] = frozenset()
    reads: tuple[tuple[str, Any], ...] = ()

    def serves(self, module: nn.Module, x: Tensor, gate: Tensor | None = None) -> bool:
        """Tell whether a trial has shown that `norm` does what the original would."""
        if type(x) not in _ORDINARY or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
            return False
        weight, bias, eps = self.parameters(module)
        return (
            x.dim() in self.ranks
            and (is_compiling() or x.numel() > 0)
            and all(is_same(value, value_of(module, name)) for name, value in self.reads)
            and not would_save_inference(x, weight, bias)
            and self._sizes_of(x) == self.sizes
            and (self.gating is None or self._takes_gate(gate, x, weight, bias))
            and _has_types(self.types, x, weight, bias, gate)
            and (x.device.type == "cpu" or (x.device.type == "cuda" and arguments.has_triton()))
            and all(
                each is None
                or (
                    type(each) in _ORDINARY and each.shape == self.sizes and each.device == x.device
                )
                for each in (weight, bias)
            )
            and (type(eps) is float or (eps is None and not self.centered))
            and self.has_layout_of(x)
        )

    def _takes_gate(self, gate: Any, x: Tensor, *parameters: Tensor | None) -> bool:
        return (
            type(gate) in _ORDINARY
            and gate.layout is torch.strided
            and not gate.is_nested
            and gate.shape == x.shape
            and gate.device == x.device
            and not would_save_inference(gate, *parameters)
            and self.has_layout_of(gate)
        )

    def _sizes_of(self, x: Tensor) -> tuple[int, ...] | None:
        if self.sizes is None:
            return None
        return x.shape[-len(self.sizes) :] if self.axis is None else x.shape[1:2]

    def has_layout_of(self, x: Tensor) -> bool:
        """Tell whether y's strides are the original's: a formula keeps those of a dense x."""
        if not self.keeps_layout or x.is_contiguous():
            return True
        if self.axis == 1 and x.dim() == 4:
            return x.is_contiguous(memory_format=torch.channels_last)
        return all(first >= second for first, second in pairwise(x.stride()))

    def parameters(self, module: nn.Module) -> tuple[Tensor | None, Tensor | None, Any]:
        """Return weight, bias and eps as they are now."""
        weight = None if self.weight is None else getattr(module, self.weight)
        bias = None if self.bias is None else getattr(module, self.bias)
        return weight, bias, getattr(module, self.eps) if type(self.eps) is str else self.eps

    def norm(self, module: nn.Module, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """Return y."""
        if gate is not None:
            return self._gated_norm(module, x, gate)
        weight, bias, eps = self.parameters(module)
        axis = self.axis
        is_moved = axis is not None and not self.keeps_layout
        if axis is None and not self.keeps_layout:
            x = x.contiguous()
        if axis is not None and is_moved:
            x, axis = x.movedim(axis, -1), None
        sizes = (x.shape[-1 if axis is None else axis],) if self.sizes is None else self.sizes
        form: dict[str, Any] = {"axis": axis, "zero_centered_weight": self.zero_centered_weight}
        if self.centered:
            y = layer_norm(x, sizes, weight, bias, eps, **form)
        else:
            y = rms_norm(x, sizes, weight, eps, **form)
        return y.movedim(-1, self.axis) if is_moved else y

    def parts(self, module: nn.Module) -> Parts | None:
        """Return what `norm` computes, for `modulated`; None if that has no such form."""
        if self.axis is not None or self.gating is not None:
            return None
        parameters = self.parameters(module)
        return Parts(self.centered, self.zero_centered_weight, self.sizes, *parameters)

    def _gated_norm(self, module: nn.Module, x: Tensor, gate: Tensor) -> Tensor:
        gating: Any = self.gating
        *parameters, eps = self.parameters(module)
        gate, weight, bias = (widened(each, x) for each in (gate, *parameters))
        if not self.keeps_layout:
            x = x.contiguous()
        sizes = x.shape[-1:] if self.sizes is None else self.sizes
        if gating.groups > 1:
            sizes = (x.shape[-1] // gating.groups,)
            x, gate, weight, bias = (
                None if each is None else each.unflatten(-1, (gating.groups, -1))
                for each in (x, gate, weight, bias)
            )
        form: dict[str, Any] = {
            "gate": gate,
            "activation": gating.activation,
            "norm_before_gate": gating.norm_before_gate,
            "zero_centered_weight": self.zero_centered_weight,
        }
        if self.centered:
            y = layer_norm(x, sizes, weight, bias, eps, **form)
        else:
            y = rms_norm(x, sizes, weight, eps, **form)
        return y.flatten(-2) if gating.groups > 1 else y


def _has_types(
    types: frozenset[Types],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    gate: Tensor | None = None,
    or_off_the_cpu: bool = False,
) -> bool:
    """Tell whether the types and autocast are among those of a trial, which ran on the CPU."""
    parameter = bias if weight is None else weight
    if parameter is not None and bias is not None and bias.dtype != parameter.dtype:
        return False
    device = x.device.type
    has_autocast = torch.is_autocast_enabled(device) if device in ("cpu", "cuda") else False
    if has_autocast and device != "cpu":
        return or_off_the_cpu
    if has_autocast and torch.get_autocast_dtype("cpu") is not torch.bfloat16:
        return False
    of_parameters = None if parameter is None else parameter.dtype
    of_gate = None if gate is None else gate.dtype
    is_dense = x.layout is torch.strided and not x.is_nested
    return is_dense and (x.dtype, of_parameters, has_autocast, of_gate) in types


Found = PyTorchs | Recognized | Modulated


class Converted:
    """What the classes that `convert` makes have in common."""

    _layernorm_made_from: tuple[type[nn.Module], "Found"]

    def extra_repr(self) -> str:
        """Describe the arguments, and say whose kernels run."""
        own = super().extra_repr()  # type: ignore[misc]
        return f"{own}, by layernorm" if own else "by layernorm"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and copy without a reference to the class, which no import finds."""
        reduced = super().__reduce_ex__(max(protocol, 2))
        if original_of(self) is None:
            return reduced
        original, found = self._layernorm_made_from
        if reduced[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return _new, (original, found), *reduced[2:]
        # The class has a `__reduce__` of its own, which may name the class.
        twin = object.__new__(original)
        vars(twin).update(vars(self))
        make, arguments, *rest = twin.__reduce_ex__(max(protocol, 2))
        return _made, (original, found, make, arguments), *rest


def is_converted(module: object) -> bool:
    """Tell whether the class of `module`, or one that it is made from, is ours."""
    return isinstance(module, Converted)


def original_of(module: object) -> type[nn.Module] | None:
    """Return the class that `module` had before `convert`; None if its class is not ours."""
    return _made_from(module)[0]


def found_of(module: object) -> "Found | None":
    """Return what was found at the swap; None if the class of `module` is not ours."""
    return _made_from(module)[1]


def _made_from(module: object) -> tuple[Any, Any]:
    return vars(type(module)).get("_layernorm_made_from", (None, None))


def converted_class(original: Any, found: Found) -> Any:
    """Return the subclass of `original` that runs our norm where `found` says that it may."""
    base = _OURS.get(original, original)
    for each in base.__subclasses__():
        made_from = vars(each).get("_layernorm_made_from")
        if made_from == (original, found) and each.forward.__wrapped__ is original.forward:
            return each
    contents = {
        "_layernorm_made_from": (original, found),
        "forward": _forward_instead_of(original, found),
        "__module__": original.__module__,  # symbolic tracing keeps PyTorch's own modules whole
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    return type(original)(original.__name__, (Converted, base), contents)


def _forward_instead_of(cls: Any, found: Found) -> Callable[..., Any]:
    original = cls.forward
    names = tuple(inspect.signature(original).parameters)[1:]
    if isinstance(found, Modulated):
        return _modulated_forward(cls, found, names)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = args
        if kwargs:
            given = (*args, *(kwargs[each] for each in names[len(args) :] if each in kwargs))
        is_served = (
            len(given) == len(names) == len(args) + len(kwargs)
            and cls.forward is original  # somebody may give the class another later
            and found.serves(self, *given)
        )
        return found.norm(self, *given) if is_served else cls.forward(self, *args, **kwargs)

    return _as_if(original, forward)


def _modulated_forward(cls: Any, found: Modulated, names: tuple[str, ...]) -> Callable[..., Any]:
    original, new = cls.forward, found.forward()

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        is_served = (
            len(args) <= len(names)
            and cls.forward is original
            and found.serves(self, dict(zip(names, args, strict=False)) | kwargs)
        )
        return (new if is_served else cls.forward)(self, *args, **kwargs)

    return _as_if(original, forward)


def _as_if(original: Any, forward: Any) -> Callable[..., Any]:
    """Return the forward, such that tools find the original where they look for its source."""
    # TorchScript compiles the source of `__wrapped__`, and looks names up in these globals.
    scope = getattr(original, "__globals__", globals())
    seen = FunctionType(forward.__code__, scope, "forward", None, forward.__closure__)
    return functools.update_wrapper(seen, original)


def _new(original: Any, found: Found) -> Any:
    cls = converted_class(original, found)
    return cls.__new__(cls)


def _made(original: Any, found: Found, make: Any, arguments: Any) -> Any:
    module = make(*arguments)
    module.__class__ = converted_class(original, found)
    return module
