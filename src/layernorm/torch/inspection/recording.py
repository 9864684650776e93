"""Runs a model and sees the calls of its norms: their arrays, or their times."""

import functools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_map

from layernorm.inspection.findings import Norm
from layernorm.inspection.messages import dy_is_random, model_raised
from layernorm.torch.conversion.convert import find, kind_of
from layernorm.torch.conversion.converted import (
    found_of,
    is_converted,
)
from layernorm.torch.inspection.calls import (
    FUNCTIONS,
    Call,
    Runner,
    Watched,
    autocast_of,
    copied,
    gradients_of,
    is_tensor,
    leaves_of,
    random_like,
    type_of,
)
from layernorm.torch.layers import LayerNorm, RMSNorm


def norms_of(model: nn.Module) -> dict[str, Watched]:
    """Return the modules that are norms, or look like some, by name."""
    known: dict[Any, Any] = {}
    watched = {}
    for name, module in _seen_modules(model):
        entry = Norm(name or "(the model)", kind_of(type(module)))
        if is_converted(module) or isinstance(module, LayerNorm | RMSNorm):
            entry.convert = "ours"
            watched[entry.name] = Watched(entry, module, found_of(module))
            continue
        found = find(module, known)
        if isinstance(found, str):
            entry.convert = f"no: a {type(module).__name__}, {found}"
            watched[entry.name] = Watched(entry, module)
        elif found is not None:
            entry.convert = "yes"
            watched[entry.name] = Watched(entry, module, found, to_convert=True)
    return watched


def _seen_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules with their names, but for those of TorchScript, which call no hooks."""
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield name, module


class Watch:
    """Sees the calls of norms while the model runs in it: their results, or their times.

    By hooks, and in the place of PyTorch's functions: in a TorchFunctionMode, ours would call
    PyTorch's.

    Args:
        watched: the norms, to which the functions that are called outside of them are added.
        record: keep what the first call was given and returned; else add up the seconds.
    """

    def __init__(self, run: Runner, watched: dict[str, Watched], *, record: bool) -> None:
        self._run = run
        self._watched = watched
        self._record = record
        self._modules: list[str] = []  # those that run, from the outside in
        self._norms: list[tuple[Watched, float]] = []  # with their starts
        self._functions: dict[str, int] = {}  # calls in each module
        self._places = count(1)
        self.seconds = 0.0  # in all norms
        self._hooks = ExitStack()

    def __enter__(self) -> Any:
        of_modules = {id(each.module): each for each in self._watched.values()}
        for name, module in _seen_modules(self._run.model):
            norm = of_modules.get(id(module))
            before = module.register_forward_pre_hook(self._before(name, norm), with_kwargs=True)
            self._hooks.callback(before.remove)
            after = module.register_forward_hook(self._after(norm), with_kwargs=True)
            self._hooks.callback(after.remove)
        for function in FUNCTIONS:
            name = function.__name__
            current = getattr(nn.functional, name)  # somebody may have replaced it
            self._hooks.callback(setattr, nn.functional, name, current)
            setattr(nn.functional, name, self._watched_function(function, current))
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()

    def _before(self, name: str, norm: Watched | None) -> Any:
        def hook(module: nn.Module, args: Any, keywords: Any) -> None:
            self._modules.append(name)
            if norm is not None:
                self._open(norm)

        return hook

    def _after(self, norm: Watched | None) -> Any:
        def hook(module: nn.Module, args: Any, keywords: Any, result: Any) -> None:
            if norm is not None:
                self._close(norm, args, keywords, result)
            self._modules.pop()

        return hook

    def _watched_function(self, function: Any, current: Any) -> Any:
        def call_watched(*args: Any, **keywords: Any) -> Any:
            if self._norms:  # which has called it
                return current(*args, **keywords)
            norm = self._of_function(function)
            self._open(norm)
            result = current(*args, **keywords)
            self._close(norm, args, keywords, result)
            return result

        return functools.wraps(function)(call_watched)

    def _of_function(self, function: Any) -> Watched:
        """Return the norm for the next call in the module that runs, a new one when recording."""
        module = self._modules[-1] if self._modules else ""
        name = f"{module or '(the model)'} {function.__name__}"
        number = self._functions[name] = self._functions.get(name, 0) + 1
        if number > 1:
            name += f" {number}"
        if name not in self._watched:
            kind = f"torch.nn.functional.{function.__name__}"
            entry = Norm(name, kind, convert="no: a function, which accelerate() takes")
            self._watched[name] = Watched(entry, None, function=function)
        return self._watched[name]

    def _open(self, norm: Watched) -> None:
        if not self._record:
            self._run.synchronize()
        self._norms.append((norm, time.perf_counter()))

    def _close(self, norm: Watched, args: Any, keywords: Any, result: Any) -> None:
        if not self._record:
            self._run.synchronize()
        _, start = self._norms.pop()
        norm.seconds.append(time.perf_counter() - start)
        if not self._norms:
            self.seconds += norm.seconds[-1]
        if not self._record:
            return
        norm.entry.calls += 1
        norm.place = norm.place or next(self._places)
        y, total = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
        given = any(is_tensor(each) for each in (*args, *keywords.values()))
        in_transform = torch._C._are_functorch_transforms_active()
        if norm.call is None and given and is_tensor(y) and not in_transform:
            args, keywords, of_y, of_total = tree_map(copied, (args, keywords, y, total))
            norm.call = Call(args, keywords, of_y, of_total, autocast_of(y.device.type))
            norm.y = get_gradient_edge(y) if y.requires_grad else None
            norm.entry.x_shape = tuple(norm.call.x.shape)
            norm.entry.x_type, norm.entry.y_type = type_of(norm.call.x), type_of(y)


def record(run: Runner, watched: dict[str, Watched], notes: list[str]) -> None:
    """Run the model once, and its backward as far as the norms."""
    try:
        with torch.enable_grad(), Watch(run, watched, record=True):
            output = run()
    except Exception as error:
        entries = [each.entry for each in watched.values()]
        raise RuntimeError(model_raised(run.model, entries, error)) from error
    in_graph = [each for each in watched.values() if each.y is not None]
    _check_dense(output, run.model)
    try:
        gradients = gradients_of(output, [each.y for each in in_graph])
    except Exception as error:
        notes.append(dy_is_random(error))
        gradients = [None] * len(in_graph)
    for norm, dy in zip(in_graph, gradients, strict=True):
        norm.dy = dy
    for each in watched.values():
        if each.call is not None:
            each.entry.gradient = "random" if each.dy is None else "the output"
            each.y = None
            each.seconds.clear()
            if each.dy is None:
                each.dy = random_like(each.call.y)


def _check_dense(output: Any, model: nn.Module) -> None:
    for each in leaves_of(output):
        if isinstance(each, Tensor) and each.layout is not torch.strided:
            raise TypeError(
                f"{type(model).__name__} returned a tensor of layout {each.layout}, expected dense "
                "ones, through which gradients go back: wrap it in a module that calls to_dense()"
            )
