"""Recognizes the norms of other libraries: by their form, then by trials."""

import inspect
from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from layernorm.torch.conversion.converted import Recognized
from layernorm.torch.conversion.identification import identify
from layernorm.torch.conversion.trial import is_arbitrary, other_tensors

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
    return _unfit_signature(type(module).forward)


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


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
