"""Finds out what the norms of a model do, with the user's data."""

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


def inspect(model: nn.Module, *inputs: Any, **keywords: Any) -> Report:
    """Run `model` on the inputs, and report on each norm in it: errors, times, ranges.

    A norm is a module that `layernorm.torch.convert` would take or report as left, one of ours, or
    a call of `torch.nn.functional.layer_norm` or `rms_norm` outside of these. Its first call is
    recorded, with the gradient that reaches its result from random gradients of the model's
    outputs, and judged in float64 by `layernorm.accuracy`; the errors are in ulp. Then the call is
    timed, as it is and with our kernels, and so is the whole model.

    The model runs in the mode that it is in, for about four seconds, and at least some two dozen
    times. It is left as it was: its parameters (unless the forward writes to them), their
    gradients, buffers, attributes, hooks and classes, and the states of PyTorch's random number
    generators. Memory: copies of what each norm was given and returned.

    Args:
        model: a module with at least one norm. Parts that torch.compile compiled run
            eagerly, also when timed.
        inputs, keywords: those of a call of the model, which gets copies.
    Returns: a `layernorm.inspection.report.Report`, to print or to save as a page.
    Raises: TypeError if model is not a module, or returns a sparse tensor; ValueError if it has no
        norm, none was called, or it has no numbers yet; RuntimeError if the model raises, from what
        it raised; ImportError for bfloat16 without ml_dtypes.
    """
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
