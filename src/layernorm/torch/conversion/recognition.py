"""Recognizes the norms of other libraries: by their form, then by trials."""

import dis
import inspect
from abc import ABCMeta
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from layernorm.torch.conversion.converted import Recognized
from layernorm.torch.conversion.identification import identify
from layernorm.torch.conversion.trial import is_arbitrary, is_plain, other_tensors

_OTHER_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LocalResponseNorm)

REPLACED_FORWARD = (
    "whose forward was replaced on the instance, so that one of its class would not run: convert "
    "the model before that"
)


def recognize(module: nn.Module) -> Recognized | str:
    """Return what the module's forward computes, or the reason why ours cannot stand in for it.

    The reason continues the sentence "left: a LlamaRMSNorm, ...".
    """
    return _unfit_form(module) or identify(module)


def has_own_forward(module: nn.Module) -> bool:
    """Tell whether a call of the module runs its class's forward, from a hook of accelerate too."""
    held = vars(module)
    if "forward" not in held or is_bound_forward(module, held["forward"]):
        return True
    return "_hf_hook" in held and is_bound_forward(module, held.get("_old_forward"))


def is_bound_forward(module: nn.Module, given: object) -> bool:
    """Tell whether `given` is the forward of the module's class, bound to the module."""
    if not isinstance(given, MethodType):
        return False
    return given.__self__ is module and given.__func__ is getattr(type(module), "forward", None)


def _unfit_form(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "which is compiled by TorchScript: convert the model before that"
    if isinstance(module, _OTHER_NORMS):
        return "which is neither layer norm nor RMS norm"
    if parametrize.is_parametrized(module):
        return "whose parameters are computed (torch.nn.utils.parametrize): convert the model first"
    children = [name for name, _ in module.named_children()]
    if children:
        return f"which does more than normalize, with its modules {_listed(children)}"
    if not has_own_forward(module):
        return REPLACED_FORWARD
    buffers = [name for name, each in other_tensors(module) if not is_arbitrary(each)]
    if buffers:
        return f"whose results may depend on {_listed(buffers)}, which is not a parameter"
    parameters = [name for name, _ in module.named_parameters()]
    if len(parameters) > 2:
        return f"which has more parameters than a weight and a bias, {_listed(parameters)}"
    return (
        _unfit_signature(type(module).forward)
        or _unfit_class(type(module))
        or _unfit_code(type(module))
    )


def _unfit_signature(forward: Any) -> str | None:
    try:
        _, *parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):
        return "whose forward has no signature that Python can read"
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or parameters[0].kind not in positional:
        return "whose forward does not name the tensor that it takes"
    if parameters[1:]:
        more = _listed([str(each).split(":")[0].split("=")[0] for each in parameters[1:]])
        return f"whose forward takes more than x, {more}, which ours does not"
    return None


def _unfit_class(cls: type) -> str | None:
    """Refuse classes that would notice the subclass that `convert` makes."""
    has_hook = any(
        "__init_subclass__" in vars(each)
        for each in cls.__mro__
        if each.__module__ not in ("builtins", "typing")
    )
    if has_hook or type(cls) not in (type, ABCMeta):
        return "whose class controls how subclasses are made, and ours would be one"
    return None


def _unfit_code(cls: type) -> str | None:
    """Refuse forwards that do or depend on what a trial cannot see."""
    for function in _methods_of_forward(cls):
        code = function.__code__
        nonlocals, names, builtins, _ = inspect.getclosurevars(function)
        outside = {**nonlocals, **names}
        if any("distributed" in each for each in code.co_names) or any(
            _home_of(each).startswith("torch.distributed") for each in outside.values()
        ):
            return "whose forward may communicate with other processes"
        if "print" in builtins:
            return "whose forward prints"
        changing = [name for name, each in outside.items() if not _is_fixed(each)]
        changing += [
            each.argval
            for each in dis.get_instructions(code)
            if each.opname in ("STORE_GLOBAL", "STORE_DEREF")
            and each.argval not in code.co_cellvars
        ]
        if changing:
            return f"whose forward uses {_listed(changing)} from outside of the module"
    return None


def _methods_of_forward(cls: type) -> Iterator[FunctionType]:
    """Iterate over the forward and the methods that it names; not those of PyTorch."""
    seen, waiting = set(), ["forward"]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for each in cls.__mro__:
            method: Any = vars(each).get(name)
            function = inspect.unwrap(getattr(method, "fget", method))
            if isinstance(function, FunctionType) and not _home_of(each).startswith("torch."):
                yield function
                waiting += function.__code__.co_names


def _home_of(value: Any) -> str:
    """Return the name of the module that defines it; "" for most values."""
    home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
    return home if isinstance(home, str) else ""


def _is_fixed(value: Any) -> bool:
    may_change = isinstance(value, list) or not is_plain(value)
    return callable(value) or isinstance(value, ModuleType) or not may_change


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
