"""Has the norms of an existing model run our kernels, and back."""

from dataclasses import dataclass, field
from types import MethodType
from typing import Any

from torch import nn

from layernorm.torch.conversion.converted import (
    Found,
    PyTorchs,
    Recognized,
    converted_class,
    found_of,
    is_converted,
    original_of,
)
from layernorm.torch.conversion.identification import types_of_pytorchs
from layernorm.torch.conversion.modulated import Modulated
from layernorm.torch.conversion.modulation import find_modulation
from layernorm.torch.conversion.recognition import (
    REPLACED_FORWARD,
    has_own_forward,
    is_bound_forward,
    recognize,
)
from layernorm.torch.conversion.trial import OF_EVERY_MODULE, is_plain
from layernorm.torch.layers import LayerNorm, RMSNorm


@dataclass
class Conversion:
    """The result of `convert`: names of modules, with the class that each had.

    Attributes:
        swapped: those that now run our kernels.
        left: those that look like a norm but stay as they are, with the reason.
        restored: those that `undo=True` has changed back.
    """

    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    restored: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"swapped {_named(name)}: {kind}" for name, kind in self.swapped.items()]
        lines += [f"restored {_named(name)}: {kind}" for name, kind in self.restored.items()]
        lines += [f"left    {_named(name)}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines) or "no norm was found"


def convert(model: nn.Module, *, undo: bool = False, dry_run: bool = False) -> Conversion:
    """Have every layer norm and RMS norm of `model` run our kernels, in place.

    A module stays the same object, with its parameters, attributes and hooks. Its class becomes a
    subclass of the one that it had. PyTorch's own modules become ours too. A module of another
    class is swapped if trials show that its forward is layer norm or RMS norm, with weight or
    1 + weight, over the last axes or axis 1: values and gradients, in training and not. A forward
    that takes a gate after x may also be norm(x) * act(gate) or norm(x * act(gate)), act silu or
    sigmoid, over the last axis or equal groups of it. A module that calls such norms and multiplies
    what they return by tensors, or adds one then, as adaptive norms do, gets a forward with one
    call for all of that. A call that no trial has covered (of other
    types, layouts or kinds of tensors, of an empty x, without the gate, or after an attribute that
    the forward reads, or the forward itself, has changed) runs the original forward.

    Args:
        model: any module, in training or not; neither it nor its norms are called.
        undo: give all modules their classes back instead.
        dry_run: change nothing, and return what would be done.
    Returns: what was swapped or restored, and what was not and why.
    Raises: TypeError if model is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is of type {type(model).__name__}, expected a torch.nn.Module: pass the model"
        )
    return _undo(model, dry_run) if undo else _convert(model, dry_run)


def _convert(model: nn.Module, dry_run: bool) -> Conversion:
    done = Conversion()
    known: dict[Any, Any] = {}
    for name, module in list(model.named_modules()):
        found = find(module, known)
        if isinstance(found, str):
            done.left[name] = f"{kind_of(type(module))}, {found}"
        elif found is not None:
            done.swapped[name] = kind_of(type(module))
            if not dry_run:
                change_class(module, converted_class(type(module), found))
    return done


def _undo(model: nn.Module, dry_run: bool) -> Conversion:
    done = Conversion()
    for name, module in list(model.named_modules()):
        original = original_of(module)
        if original is not None:
            done.restored[name] = kind_of(original)
            if not dry_run:
                change_class(module, original)
        elif is_converted(module):
            done.left[name] = (
                f"{kind_of(type(module))}, whose class was changed again after `convert`, by "
                "sharding or parametrization: take that back first"
            )
    return done


def find(module: nn.Module, known: dict[Any, Any]) -> Found | str | None:
    """Return what to make of a module; the reason to leave it; None if it is not for `convert`."""
    if is_converted(module) or isinstance(module, LayerNorm | RMSNorm):
        return None
    cls: Any = type(module)
    if cls in (nn.LayerNorm, nn.RMSNorm):
        if not has_own_forward(module):
            return REPLACED_FORWARD
        has_bias = getattr(module, "bias", None) is not None
        return types_of_pytorchs(cls, cls.forward, module.weight is not None, has_bias)
    if not isinstance(module, nn.LayerNorm | nn.RMSNorm):
        if not _has_name_of_a_norm(module):
            return None
        children = dict(module.named_children())
        if children and not any(True for _ in module.parameters(recurse=False)):
            return _find_modulation(module, children, known)
    key = _key(module)
    if key not in known:
        known[key] = recognize(module)
    return known[key]


def _find_modulation(
    module: nn.Module, children: dict[str, nn.Module], known: dict[Any, Any]
) -> Modulated | None:
    """Look for an adaptive norm in a module that only calls others, which have their turn."""
    key = (_key(module), *((name, _key(each)) for name, each in children.items()))
    if key not in known:
        found = {name: found_of(each) or find(each, known) for name, each in children.items()}
        norms = {
            name: each
            for name, each in found.items()
            if isinstance(each, PyTorchs | Recognized) and each.parts(children[name])
        }
        known[key] = find_modulation(module, norms)
    return known[key]


def _has_name_of_a_norm(module: nn.Module) -> bool:
    if type(module).__module__.startswith("torch.nn.utils."):  # a parametrization, as weight norm
        return False
    kind = getattr(module, "original_name", type(module).__name__)  # TorchScript's
    return "norm" in kind.lower()


def _key(module: nn.Module) -> Any:
    """Return what decides a trial, so that layers of the same kind need one."""
    values = {
        name: (type(value), _hashable(value))
        for name, value in vars(module).items()
        if name not in OF_EVERY_MODULE
    }
    parts = (module._parameters, module._buffers, module._modules)
    shapes = [
        (name, tuple(getattr(each, "shape", ()))) for part in parts for name, each in part.items()
    ]
    is_own = has_own_forward(module)
    return type(module), tuple(values.items()), tuple(shapes), is_own


def _hashable(value: Any) -> Any:
    if not is_plain(value):
        return id(value)
    return tuple(value) if isinstance(value, list) else value


def change_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Change the class, and with it its forward where the module or accelerate's hook holds it."""
    held = [
        name
        for name in ("forward", "_old_forward")
        if is_bound_forward(module, vars(module).get(name))
    ]
    module.__class__ = cls
    # PyTorch 2.10's compiler looks at a module's class again only if its dictionary has changed.
    vars(module)["_class_changed"] = True
    del vars(module)["_class_changed"]
    for name in held:
        vars(module)[name] = MethodType(cls.forward, module)


def kind_of(cls: type) -> str:
    """Return the name of a class, with its module's."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _named(name: str) -> str:
    return name or "the model itself"
