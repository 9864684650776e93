"""Makes the report on a PyTorch model."""

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from layernorm.inspection.messages import not_measured
from layernorm.inspection.report import Report
from layernorm.torch.conversion.convert import kind_of
from layernorm.torch.inspection.calls import Runner, Watched
from layernorm.torch.inspection.judging import judge
from layernorm.torch.inspection.recording import norms_of, record
from layernorm.torch.inspection.timing import time_in_place, time_model, time_norm


def report_on(model: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Report:
    """Do what `inspect` says."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is of type {type(model).__name__}, expected a torch.nn.Module: pass the model"
        )
    model = getattr(model, "_orig_mod", model)  # of a compiled model
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"model is a {type(model).__name__}, in which calls cannot be seen: pass the module "
            "that TorchScript made it from"
        )
    if any(nn.parameter.is_lazy(each) for each in (*model.parameters(), *model.buffers())):
        raise ValueError("the model has lazy modules, without parameters: call it once before")
    if any(each.is_meta for each in (*model.parameters(), *model.buffers())):
        raise ValueError("the model has tensors on the meta device, without numbers: load it")
    eager = torch.compiler.set_stance("force_eager")
    with torch.inference_mode(False), eager, _unchanged(model):
        return _inspect(Runner(model, inputs, keywords))


def _inspect(run: Runner) -> Report:
    model = run.model
    watched = norms_of(model)
    report = Report(
        model=kind_of(type(model)),
        framework=f"PyTorch {torch.__version__}",
        device=str(run.device),
        mode="training" if model.training else "inference",
    )
    record(run, watched, report.notes)
    if not any(each.entry.calls for each in watched.values()):
        _raise_without_norms(model, watched)
    called = [each for each in watched.values() if each.call is not None]
    if any(isinstance(each, torch.jit.ScriptModule) for each in model.modules()):
        report.notes.append("norms inside of TorchScript's modules are not seen")
    unseen = [e.entry.name for e in watched.values() if e.entry.calls and e.call is None]
    if unseen:
        report.notes.append(
            "not measured, because they run inside torch.func, or their input or result is not "
            f"one dense floating-point tensor: {', '.join(unseen)}"
        )
    report.share = time_in_place(run, watched)
    for each in called:
        try:
            judge(each)
            time_norm(each, run)
        except ImportError:
            raise
        except Exception as error:
            report.notes.append(not_measured(each.entry.name, error))
        each.call = each.dy = None
    time_model(run, called, report)
    in_order = sorted(watched.values(), key=lambda each: each.place or math.inf)
    report.norms = [each.entry for each in in_order]
    return report


def _raise_without_norms(model: nn.Module, watched: dict[str, Watched]) -> None:
    name = type(model).__name__
    if watched:
        raise ValueError(f"{name} called none of its norms, {', '.join(watched)}, on these inputs")
    raise ValueError(
        f"{name} has no norm: neither a layer norm or RMS norm of PyTorch's or ours, nor a module "
        "whose class is named after a norm, nor a call of PyTorch's functions"
    )


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Give the model's attributes and buffers, and the random numbers, back as they were."""
    kept = [
        (each, copy.copy(each))
        for module in model.modules()
        for each in (vars(module), *vars(module).values())
        if type(each) in (dict, OrderedDict, list, set)
    ]
    buffers = [(each, each.detach().clone()) for each in model.buffers()]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            for container, before in kept:
                container.clear()
                container.extend(before) if type(container) is list else container.update(before)
            with torch.no_grad():
                for buffer, numbers in buffers:
                    buffer.copy_(numbers)
