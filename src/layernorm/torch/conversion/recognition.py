"""Recognizes the norms of other libraries: by their form, then by trials."""

import builtins
import contextlib
import dis
import inspect
from abc import ABCMeta
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from layernorm.torch.conversion.converted import Recognized
from layernorm.torch.conversion.identification import identify
from layernorm.torch.conversion.trial import is_arbitrary, is_plain, other_tensors

_OTHER_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LocalResponseNorm)

# Libraries and modules whose objects are as good as functions. The last has a table of them.
_STATELESS = ("torch", "numpy", "functools", "typing", "transformers.activations")

_OPAQUE_FUNCTIONS = ("isinstance", "type", "hasattr", "getattr", "setattr", "delattr", "callable")

REPLACED_FORWARD = (
    "whose forward was replaced on the instance, so that one of its class would not run: convert "
    "the model before that"
)


def recognize(module: nn.Module) -> Recognized | str:
    """Return what the module's forward computes, or the reason why ours cannot stand in for it.

    The reason continues the sentence "left: a LlamaRMSNorm, ...".
    """
    return _unfit_form(module) or identify(module)


def can_be_traced(module: nn.Module) -> bool:
    """Tell whether the forward of a module without parameters does what `torch.fx` sees of it."""
    return (
        has_own_forward(module)
        and not isinstance(module, torch.jit.ScriptModule)
        and not parametrize.is_parametrized(module)
        and not other_tensors(module)
        and not _unfit_class(type(module))
        and not _unfit_code(module)
        and not any(_Used.by(each).is_opaque for each in _functions_of_forward(module))
    )


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
        _unfit_signature(type(module).forward) or _unfit_class(type(module)) or _unfit_code(module)
    )


def _unfit_signature(forward: Any) -> str | None:
    try:
        _, *parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):
        return "whose forward has no signature that Python can read"
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or parameters[0].kind not in positional:
        return "whose forward does not name the tensor that it takes"
    if parameters[2:] or any(each.kind not in positional for each in parameters):
        more = _listed([str(each).split(":")[0].split("=")[0] for each in parameters[1:]])
        return f"whose forward takes more than x and one positional gate, {more}"
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


def _unfit_code(module: nn.Module) -> str | None:
    """Refuse forwards that do or depend on what a trial cannot see."""
    homes = {each.__module__ for each in type(module).__mro__}
    for function in _functions_of_forward(module):
        used = _Used.by(function)
        if used.attributes & {"distributed", "torch.distributed"} or any(
            _home_of(each).startswith("torch.distributed") for each in used.values.values()
        ):
            return "whose forward may communicate with other processes"
        if function.__globals__.get("__name__") not in homes:
            continue
        if used.values.get("print") is print:
            return "whose forward prints"
        changing = [name for name, each in used.values.items() if not _is_fixed(each)]
        if changing or used.assigned:
            names = _listed([*changing, *used.assigned])
            return f"whose forward uses {names} from outside of the module"
    return None


@dataclass
class _Used:
    """What a function, with those inside of it, uses from outside.

    Attributes:
        values: its globals, builtins and closure, by name.
        attributes: the names of attributes, of any object, and of imports.
        assigned: the names of globals and of its closure that it assigns to.
        is_opaque: it does what `torch.fx` does not see: enters contexts, assigns attributes, or
            asks for types, which those of proxies are not.
    """

    values: dict[str, Any] = field(default_factory=dict)
    attributes: set[str] = field(default_factory=set)
    assigned: set[str] = field(default_factory=set)
    is_opaque: bool = False

    @classmethod
    def by(cls, function: FunctionType) -> "_Used":
        used = cls()
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        waiting = [function.__code__]
        while waiting:
            code = waiting.pop()
            waiting += [each for each in code.co_consts if isinstance(each, CodeType)]
            for each in dis.get_instructions(code):
                used._note(each.opname, each.argval, function, cells)
        return used

    def _note(self, operation: str, name: Any, function: Any, cells: dict[str, Any]) -> None:
        if operation == "LOAD_GLOBAL":
            self.is_opaque |= name in _OPAQUE_FUNCTIONS
            self.values[name] = function.__globals__.get(name, getattr(builtins, name, None))
        elif operation == "STORE_GLOBAL" or (operation == "STORE_DEREF" and name in cells):
            self.assigned.add(name)
        elif operation.endswith("DEREF") and name in cells:
            with contextlib.suppress(ValueError):  # an empty cell
                self.values[name] = cells[name].cell_contents
        elif operation in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_NAME"):
            self.attributes.add(name)
        elif operation in ("BEFORE_WITH", "LOAD_SPECIAL", "STORE_ATTR", "DELETE_ATTR"):
            self.is_opaque = True


def _functions_of_forward(module: nn.Module) -> Iterator[FunctionType]:
    """Iterate over the forward and all that it may call; not what is PyTorch's."""
    seen: set[int] = set()
    waiting = _named("forward", module)
    while waiting:
        function = waiting.pop()
        if not isinstance(function, FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        waiting.append(getattr(function, "__wrapped__", None))
        if str(function.__globals__.get("__name__")).startswith("torch."):
            continue
        yield function
        used = _Used.by(function)
        waiting += used.values.values()
        for name in used.attributes:
            waiting += _named(name, module)


def _named(name: str, module: nn.Module) -> list[Any]:
    """Return what an attribute of the module may be, of any of its classes."""
    found = [vars(module).get(name), *(vars(each).get(name) for each in type(module).__mro__)]
    return [getattr(each, "fget", getattr(each, "__func__", each)) for each in found]


def _home_of(value: Any) -> str:
    """Return the name of the module that defines it; "" for most values."""
    home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
    return home if isinstance(home, str) else ""


def _is_fixed(value: Any) -> bool:
    if isinstance(value, list | Tensor):
        return False
    home = type(value).__module__
    is_stateless = home in _STATELESS or home.partition(".")[0] in _STATELESS
    return is_plain(value) or isinstance(value, ModuleType) or is_stateless


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
