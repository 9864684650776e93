"""Finds out what the norms of a model do, with the user's data."""

import copy
import functools
import inspect as signatures
import math
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from layernorm.inspection import measure
from layernorm.inspection.findings import Norm, Times
from layernorm.inspection.report import Report
from layernorm.torch.accelerated import accelerate
from layernorm.torch.arguments import machine_epsilon
from layernorm.torch.conversion.convert import change_class, find, kind_of
from layernorm.torch.conversion.converted import (
    Found,
    PyTorchs,
    Recognized,
    converted_class,
    found_of,
    is_converted,
)
from layernorm.torch.layers import LayerNorm, RMSNorm

_FUNCTIONS: dict[Any, str] = {
    nn.functional.layer_norm: "layer_norm",
    nn.functional.rms_norm: "rms_norm",
}
"""PyTorch's functions, and what they compute."""

_OF_A_NORM = 0.05
_OF_THE_MODEL = 2.0
"""Seconds to time each of them for."""

_FORWARDS = 5
"""Forwards in which the norms' shares are measured."""


def inspect(model: nn.Module, *inputs: Any, **keywords: Any) -> Report:
    """Run `model` on the inputs, and report on each norm in it: errors, times, ranges.

    A norm is a module that `layernorm.torch.convert` would take or report as left, one of ours, or
    a call of `torch.nn.functional.layer_norm` or `rms_norm` outside of these. Its first call is
    recorded, with the gradient that reaches its result from random gradients of the model's
    outputs, and judged in float64 by `layernorm.accuracy`; the errors are in ulp. Then the call is
    timed, as it is and with our kernels, and so is the whole model.

    The model runs some dozens of times, in the mode that it is in, and is left as it was: its
    parameters, their gradients, buffers, attributes, hooks and classes, and the states of PyTorch's
    random number generators. Memory: copies of what each norm was given and returned.

    Args:
        model: a module with at least one norm. What is compiled in it runs as it was before that.
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
        return _inspect(_Runner(model, inputs, keywords))


@dataclass
class _Watched:
    """A norm of the model.

    Attributes:
        entry: of the report.
        module: None for a function.
        found: what `convert` makes of it, or made of it.
        to_convert: whether it would.
        call: the first call.
        y: its result, in the graph.
        seconds: in all calls of a forward.
        place: in the order of first calls.
    """

    entry: Norm
    module: nn.Module | None
    found: Found | None = None
    to_convert: bool = False
    function: Any = None
    call: "_Call | None" = None
    y: Tensor | None = None
    dy: Tensor | None = None
    seconds: list[float] = field(default_factory=list)
    place: int = 0


@dataclass(frozen=True)
class _Call:
    """The arguments of a call, and what it returned: copies without a graph."""

    args: tuple[Any, ...]
    keywords: dict[str, Any]
    y: Tensor
    total: Tensor | None

    @property
    def x(self) -> Tensor:
        return next(each for each in (*self.args, *self.keywords.values()) if _is_tensor(each))

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> "_Call":
        """Return the call with other tensors in the place of x and of those of its shape."""
        shape = self.x.shape

        def changed(each: Any) -> Any:
            return change(each) if _is_tensor(each) and each.shape == shape else each

        args, keywords = tree_map(changed, (self.args, self.keywords))
        return replace(self, args=args, keywords=keywords)


class _Runner:
    """Calls the model, always in the same way."""

    def __init__(self, model: nn.Module, inputs: Sequence[Any], keywords: dict[str, Any]) -> None:
        self.model = model
        self._given = (inputs, keywords)
        tensors = [*model.parameters(), *model.buffers(), *tree_leaves(self._given)]
        self.device = next((each.device for each in tensors if isinstance(each, Tensor)), "cpu")

    def __call__(self) -> Any:
        """Return what the model returns for copies of the inputs, which it may change."""
        copies: dict[int, Any] = {}  # what is given twice is one object in the copies too
        args, keywords = tree_map(lambda each: _copy_of_input(each, copies), self._given)
        torch.manual_seed(0)
        return self.model(*args, **keywords)

    def differentiate(self, wanted: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Call the model; return the gradients of the tensors."""
        return _gradients(self(), wanted)

    def synchronize(self) -> None:
        """Wait for the device."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize()


def _inspect(run: _Runner) -> Report:
    model = run.model
    watched = _norms_of(model)
    report = Report(
        model=kind_of(type(model)),
        framework=f"PyTorch {torch.__version__}",
        device=str(run.device),
        mode="training" if model.training else "inference",
    )
    _record(run, watched, report.notes)
    if not any(each.entry.calls for each in watched.values()):
        _raise_without_norms(model, watched)
    called = [each for each in watched.values() if each.call is not None]
    if any(isinstance(each, torch.jit.ScriptModule) for each in model.modules()):
        report.notes.append("norms inside of TorchScript's modules are not seen")
    unseen = [e.entry.name for e in watched.values() if e.entry.calls and e.call is None]
    if unseen:
        report.notes.append(
            "not measured, because they run inside of torch.func, or not from a dense "
            f"floating-point tensor to one: {', '.join(unseen)}"
        )
    report.share = _time_in_place(run, watched)
    for each in called:
        _judge(each)
    for each in called:
        _time(each, run)
        each.call = each.dy = None
    _time_model(run, called, report)
    in_order = sorted(watched.values(), key=lambda each: each.place or math.inf)
    report.norms = [each.entry for each in in_order]
    return report


def _raise_without_norms(model: nn.Module, watched: dict[str, _Watched]) -> None:
    name = type(model).__name__
    if watched:
        raise ValueError(f"{name} called none of its norms, {', '.join(watched)}, on these inputs")
    raise ValueError(
        f"{name} has no norm: neither a layer norm or RMS norm of PyTorch's or ours, nor a module "
        "whose class is named after a norm, nor a call of PyTorch's functions"
    )


def _norms_of(model: nn.Module) -> dict[str, _Watched]:
    """Return the modules that are norms, or look like some, by name."""
    known: dict[Any, Any] = {}
    watched = {}
    for name, module in _seen_modules(model):
        entry = Norm(name or "(the model)", kind_of(type(module)))
        if is_converted(module) or isinstance(module, LayerNorm | RMSNorm):
            entry.convert = "ours"
            watched[entry.name] = _Watched(entry, module, found_of(module))
            continue
        found = find(module, known)
        if isinstance(found, str):
            entry.convert = f"no: a {type(module).__name__}, {found}"
            watched[entry.name] = _Watched(entry, module)
        elif found is not None:
            entry.convert = "yes"
            watched[entry.name] = _Watched(entry, module, found, to_convert=True)
    return watched


def _seen_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules with their names, but for those of TorchScript, which call no hooks."""
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield name, module


# ---- one run that is recorded


class _Watch:
    """Sees the calls of norms while the model runs in it: their results, or their times.

    By hooks, and in the place of PyTorch's functions: in a TorchFunctionMode, ours would call
    PyTorch's.

    Args:
        watched: the norms, to which the functions that are called outside of them are added.
        record: keep what the first call was given and returned; else add up the seconds.
    """

    def __init__(self, run: _Runner, watched: dict[str, _Watched], *, record: bool) -> None:
        self._run = run
        self._watched = watched
        self._record = record
        self._modules: list[str] = []  # those that run, from the outside in
        self._norms: list[tuple[_Watched, float]] = []  # with their starts
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
        for function in _FUNCTIONS:
            name = function.__name__
            self._hooks.callback(setattr, nn.functional, name, function)
            setattr(nn.functional, name, self._watched_function(function))
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()

    def _before(self, name: str, norm: _Watched | None) -> Any:
        def hook(module: nn.Module, args: Any, keywords: Any) -> None:
            self._modules.append(name)
            if norm is not None:
                self._open(norm)

        return hook

    def _after(self, norm: _Watched | None) -> Any:
        def hook(module: nn.Module, args: Any, keywords: Any, result: Any) -> None:
            if norm is not None:
                self._close(norm, args, keywords, result)
            self._modules.pop()

        return hook

    def _watched_function(self, function: Any) -> Any:
        def watched(*args: Any, **keywords: Any) -> Any:
            if self._norms:  # which has called it
                return function(*args, **keywords)
            norm = self._of_function(function)
            self._open(norm)
            result = function(*args, **keywords)
            self._close(norm, args, keywords, result)
            return result

        return functools.wraps(function)(watched)

    def _of_function(self, function: Any) -> _Watched:
        """Return the norm for the next call in the module that runs, a new one when recording."""
        module = self._modules[-1] if self._modules else ""
        name = f"{module or '(the model)'} {function.__name__}"
        number = self._functions[name] = self._functions.get(name, 0) + 1
        if number > 1:
            name += f" {number}"
        if name not in self._watched:
            kind = f"torch.nn.functional.{function.__name__}"
            entry = Norm(name, kind, convert="no: a function, which accelerate() takes")
            self._watched[name] = _Watched(entry, None, function=function)
        return self._watched[name]

    def _open(self, norm: _Watched) -> None:
        if not self._record:
            self._run.synchronize()
        self._norms.append((norm, time.perf_counter()))

    def _close(self, norm: _Watched, args: Any, keywords: Any, result: Any) -> None:
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
        given = any(_is_tensor(each) for each in (*args, *keywords.values()))
        in_transform = torch._C._are_functorch_transforms_active()
        if norm.call is None and given and _is_tensor(y) and not in_transform:
            args, keywords, of_y, of_total = tree_map(_copy, (args, keywords, y, total))
            norm.call = _Call(args, keywords, of_y, of_total)
            norm.y = y
            norm.entry.x_shape = tuple(norm.call.x.shape)
            norm.entry.x_type, norm.entry.y_type = _type_of(norm.call.x), _type_of(y)


def _record(run: _Runner, watched: dict[str, _Watched], notes: list[str]) -> None:
    """Run the model once, and its backward as far as the norms."""
    try:
        with torch.enable_grad(), _Watch(run, watched, record=True):
            output = run()
    except Exception as error:
        done = sum(each.entry.calls for each in watched.values())
        raise RuntimeError(
            f"{type(run.model).__name__} raised {type(error).__name__} on these inputs, after "
            f"{done} calls of norms: {error}"
        ) from error
    in_graph = [each for each in watched.values() if each.y is not None and each.y.requires_grad]
    _check_dense(output, run.model)
    try:
        gradients = _gradients(output, [each.y for each in in_graph if each.y is not None])
    except Exception as error:
        notes.append(f"the gradients of norms are of random dy: the backward raised {error}")
        gradients = [None] * len(in_graph)
    for norm, dy in zip(in_graph, gradients, strict=True):
        norm.dy = dy
    for each in watched.values():
        if each.call is not None:
            each.entry.gradient = "random" if each.dy is None else "the output"
            each.y = None
            each.seconds.clear()
            if each.dy is None:
                each.dy = _random_like(each.call.y)


def _check_dense(output: Any, model: nn.Module) -> None:
    for each in _leaves(output):
        if isinstance(each, Tensor) and each.layout is not torch.strided:
            raise TypeError(
                f"{type(model).__name__} returned a tensor of layout {each.layout}, expected dense "
                "ones, through which gradients go back: wrap it in a module that calls to_dense()"
            )


def _gradients(output: Any, wanted: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return the gradients of the tensors, for random gradients of the output."""
    outputs = [each for each in _leaves(output) if _is_tensor(each) and each.requires_grad]
    if not outputs or not wanted:
        return [None] * len(wanted)
    dys = [_random_like(each) for each in outputs]
    return torch.autograd.grad(outputs, wanted, dys, allow_unused=True)


# ---- errors


def _judge(watched: _Watched) -> None:
    """Measure the first call, on its first samples."""
    call, dy = watched.call, watched.dy
    assert call is not None
    assert dy is not None
    parameters = _parameters(watched, call)
    meaning = _meaning(watched, call, parameters)
    if meaning is None:
        measure.fill_parameters(watched.entry, *(_to_array(each) for each in parameters))
        return
    fits = measure.part_that_fits(tuple(call.x.shape), meaning.axis)
    part = replace(call.with_tensors(lambda each: each[fits]), y=call.y[fits])
    if call.total is not None:
        part = replace(part, total=call.total[fits])
    gradients: list[Tensor | None] = [None] * 3
    if call.total is None:
        gradients = _backward(watched, part, parameters, dy[fits])
    else:
        dy = None
    measured = _meaning(watched, part, parameters)
    assert measured is not None
    arrays = (None if dy is None else dy[fits], *gradients)
    named = zip(("dy", "dx", "dweight", "dbias"), map(_to_array, arrays), strict=True)
    measure.fill(watched.entry, replace(measured, **dict(named)))


def _backward(
    watched: _Watched, call: _Call, parameters: Sequence[Tensor | None], dy: Tensor
) -> list[Tensor | None]:
    """Return the gradients of x, weight and bias, by the norm's own backward."""
    leaf = call.x.detach().requires_grad_()
    call = call.with_tensors(lambda each: leaf if each is call.x else each)
    wanted: list[Tensor | None] = [leaf, *parameters]
    needed = [each for each in wanted if each is not None and each.requires_grad]
    with torch.enable_grad():
        y = _run(watched, call)
        found = iter(torch.autograd.grad(y, needed, dy, allow_unused=True))
    return [None if each is None or not each.requires_grad else next(found) for each in wanted]


def _parameters(watched: _Watched, call: _Call) -> tuple[Tensor | None, Tensor | None]:
    """Return the weight and the bias that the call used."""
    module, found = watched.module, watched.found
    if module is None:
        given = _bound(watched.function, call)
        return given.get("weight"), given.get("bias")
    if isinstance(found, Recognized):
        return found.parameters(module)[:2]
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    return (weight if _is_tensor(weight) else None), (bias if _is_tensor(bias) else None)


def _meaning(
    watched: _Watched, call: _Call, parameters: Sequence[Tensor | None]
) -> measure.Call | None:
    """Return what the call computes; None if that is not known."""
    module, found = watched.module, watched.found
    weight, bias = parameters
    gate: Tensor | None = None
    options: dict[str, Any] = {}
    x, y = call.x, call.y
    if module is None:
        given = _bound(watched.function, call)
        computes = _FUNCTIONS[watched.function]
        axis: Any = _last(given["normalized_shape"])
        eps = given["eps"]
    elif isinstance(found, Recognized):
        computes = "layer_norm" if found.centered else "rms_norm"
        _, _, eps = found.parameters(module)
        axis = -1 if found.axis is None else found.axis
        if found.axis is None and found.sizes is not None:
            axis = _last(found.sizes)
        options["zero_centered_weight"] = found.zero_centered_weight
        if found.gating is not None:
            _, gate = (*call.args, *call.keywords.values(), None)[:2]
            gating = found.gating
            options["activation"] = gating.activation
            options["norm_before_gate"] = gating.norm_before_gate
            if gating.groups > 1:
                return None
    elif isinstance(found, PyTorchs) or isinstance(module, LayerNorm | RMSNorm):
        computes = "layer_norm" if isinstance(module, nn.LayerNorm) else "rms_norm"
        axis = _last(module.normalized_shape)
        eps = module.eps
        if isinstance(module, LayerNorm | RMSNorm) and found is None:
            axis = axis if module.axis is None else module.axis
            options["zero_centered_weight"] = module.zero_centered_weight
            given = _bound(type(module).forward, replace(call, args=(module, *call.args)))
            gate = given["gate"]
            x = x if call.total is None else call.total
            options["activation"] = given["activation"]
            options["norm_before_gate"] = given["norm_before_gate"]
    else:
        return None
    eps = machine_epsilon(x.dtype) if eps is None else float(eps)
    x_, y_, weight_, bias_, gate_ = map(_to_array, (x, y, weight, bias, gate))
    assert x_ is not None
    assert y_ is not None
    return measure.Call(computes, x_, y_, axis, eps, weight_, bias_, gate=gate_, **options)


def _bound(function: Any, call: _Call) -> dict[str, Any]:
    bound = signatures.signature(function).bind(*call.args, **call.keywords)
    bound.apply_defaults()
    return bound.arguments


def _last(sizes: Any) -> tuple[int, ...]:
    return tuple(range(-len(sizes), 0)) if isinstance(sizes, Sequence) else (-1,)


# ---- times


def _time_in_place(run: _Runner, watched: dict[str, _Watched]) -> float:
    """Measure which share of the forward each norm takes; return that of all."""
    shares: dict[str, list[float]] = {name: [] for name in watched}
    of_all = []
    for _ in range(_FORWARDS):
        with _grad_mode(run.model), _Watch(run, watched, record=False) as watch:
            start = time.perf_counter()
            run()
            run.synchronize()
            seconds = time.perf_counter() - start
        of_all.append(watch.seconds / seconds)
        for name, each in watched.items():
            shares[name].append(sum(each.seconds) / seconds)
            each.seconds.clear()
    for name, each in watched.items():
        each.entry.share = statistics.median(shares[name]) if each.entry.calls else None
    return statistics.median(of_all)


def _time(watched: _Watched, run: _Runner) -> None:
    """Time a norm by itself, and ours in its place."""
    if not (watched.to_convert or watched.module is None):
        return
    call, dy = watched.call, watched.dy
    assert call is not None
    leaf = call.x.detach().requires_grad_()
    trained = call.with_tensors(lambda each: leaf if each is call.x else each)
    parameters = [each for each in _parameters(watched, call) if each is not None]
    wanted = [leaf, *(each for each in parameters if each.requires_grad)]

    def forward() -> None:
        with torch.no_grad():
            _run(watched, call)
        run.synchronize()

    def training() -> None:
        with torch.enable_grad():
            torch.autograd.grad(_run(watched, trained), wanted, dy, allow_unused=True)
        run.synchronize()

    watched.entry.forward = _compare(forward, [watched], _OF_A_NORM)
    watched.entry.training = _compare(training, [watched], _OF_A_NORM)


def _time_model(run: _Runner, watched: Sequence[_Watched], report: Report) -> None:
    """Time the model as it is, and with ours."""
    if not any(each.to_convert or each.module is None for each in watched):
        report.notes.append("no norm is left to convert, so nothing was compared by time")
        return
    parameters = [each for each in run.model.parameters() if each.requires_grad]

    def forward() -> None:
        with _grad_mode(run.model):
            run()
        run.synchronize()

    def training() -> None:
        with torch.enable_grad():
            run.differentiate(parameters)
        run.synchronize()

    report.forward = _compare(forward, watched, _OF_THE_MODEL)
    if parameters and any(each.entry.gradient == "the output" for each in watched):
        try:
            report.training = _compare(training, watched, _OF_THE_MODEL)
        except Exception as error:  # as of a model that keeps tensors, with their graph
            report.notes.append(f"the model's backward was not timed: it raised {error}")


def _compare(call: Callable[[], None], watched: Sequence[_Watched], seconds: float) -> Times:
    """Time a call as it is, and with our norms in the place of those watched."""

    def around(name: str) -> AbstractContextManager[object]:
        return _with_ours(watched) if name == "ours" else nullcontext()

    calls = {"own": call, "ours": call}
    return Times(**measure.medians(calls, around=around, seconds=seconds))


@contextmanager
def _with_ours(watched: Sequence[_Watched]) -> Iterator[None]:
    """Convert the norms that `convert` takes, and have accelerate() take the functions."""
    with ExitStack() as back:
        for each in watched:
            if each.to_convert and each.module is not None:
                original: Any = type(each.module)
                change_class(each.module, converted_class(original, each.found))  # type: ignore[arg-type]
                back.callback(change_class, each.module, original)
        if any(each.module is None for each in watched):
            back.enter_context(accelerate())
        yield


# ---- the model, and tensors


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
    devices = list({each.device for each in model.parameters() if each.device.type == "cuda"})
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


def _grad_mode(model: nn.Module) -> Any:
    return nullcontext() if model.training else torch.no_grad()


def _run(watched: _Watched, call: _Call) -> Tensor:
    called = watched.function if watched.module is None else watched.module
    result = called(*call.args, **call.keywords)
    y: Tensor = result[0] if isinstance(result, tuple) else result
    return y


def _is_tensor(given: object) -> bool:
    return isinstance(given, Tensor) and given.is_floating_point() and not given.is_nested


def _leaves(output: Any) -> Iterable[Any]:
    """Yield what is in the output; PyTorch does not look into dataclasses."""
    for each in tree_leaves(output):
        if is_dataclass(each) and not isinstance(each, type):
            yield from _leaves([getattr(each, part.name) for part in fields(each)])
        else:
            yield each


def _copy(given: Any) -> Any:
    """Return a tensor of the same numbers, without a graph; any other object itself."""
    if not isinstance(given, Tensor):
        return given
    with torch.inference_mode(False):
        return given.detach().clone().requires_grad_(given.requires_grad)


def _copy_of_input(given: Any, copies: dict[int, Any]) -> Any:
    """Return a copy; an object that cannot be copied itself."""
    if isinstance(given, Tensor):
        if id(given) not in copies:
            copies[id(given)] = _copy(given)
        return copies[id(given)]
    try:
        return copy.deepcopy(given, copies)
    except Exception:
        return given


def _random_like(given: Tensor) -> Tensor:
    random = torch.Generator().manual_seed(0)
    numbers = torch.randn(given.shape, generator=random, dtype=torch.float32)
    return numbers.to(given.device, given.dtype)


def _type_of(given: Tensor) -> str:
    return str(given.dtype).removeprefix("torch.")


def _to_array(given: Tensor | None) -> Any:
    if given is None:
        return None
    given = given.detach().cpu()
    if given.dtype != torch.bfloat16:
        return given.numpy()
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        raise ImportError(
            "the errors of bfloat16 are measured with ml_dtypes, which is not installed: "
            "pip install ml_dtypes"
        ) from None
    return given.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
