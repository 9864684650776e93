"""Times norms and their model, as they are and with ours."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from layernorm.inspection import measure
from layernorm.inspection.findings import Times
from layernorm.inspection.messages import NOTHING_TO_CONVERT
from layernorm.inspection.report import Report
from layernorm.torch.accelerated import accelerate
from layernorm.torch.conversion.convert import change_class
from layernorm.torch.conversion.converted import converted_class
from layernorm.torch.inspection.calls import Runner, Watched, parameters_of, repeat
from layernorm.torch.inspection.recording import Watch

_FORWARDS = 5
"""Forwards in which the norms' shares are measured."""


def time_in_place(run: Runner, watched: dict[str, Watched]) -> float:
    """Measure which share of the forward each norm takes; return that of all."""
    shares: dict[str, list[float]] = {name: [] for name in watched}
    of_all = []
    for _ in range(_FORWARDS):
        with _grad_mode(run.model), Watch(run, watched, record=False) as watch:
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


def time_norm(watched: Watched, run: Runner) -> None:
    """Time a norm by itself, and ours in its place."""
    if not (watched.to_convert or watched.module is None):
        return
    call, dy = watched.call, watched.dy
    assert call is not None
    leaf = call.x.detach().requires_grad_()
    trained = call.with_tensors(lambda each: leaf if each is call.x else each)
    parameters = [each for each in parameters_of(watched, call) if each is not None]
    wanted = [leaf, *(each for each in parameters if each.requires_grad)]

    def forward() -> None:
        with torch.no_grad():
            repeat(watched, call)
        run.synchronize()

    def training() -> None:
        with torch.enable_grad():
            torch.autograd.grad(repeat(watched, trained), wanted, dy, allow_unused=True)
        run.synchronize()

    watched.entry.forward = _compare(forward, [watched], measure.OF_A_NORM)
    watched.entry.training = _compare(training, [watched], measure.OF_A_NORM)


def time_model(run: Runner, watched: Sequence[Watched], report: Report) -> None:
    """Time the model as it is, and with ours."""
    if not any(each.to_convert or each.module is None for each in watched):
        report.notes.append(NOTHING_TO_CONVERT)
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

    report.forward = _compare(forward, watched, measure.OF_THE_MODEL)
    if parameters and any(each.entry.gradient == "the output" for each in watched):
        try:
            report.training = _compare(training, watched, measure.OF_THE_MODEL)
        except Exception as error:  # as of a model that keeps tensors, with their graph
            report.notes.append(
                "the model's backward was not timed, because it raised "
                f"{type(error).__name__}: {error}"
            )


def _compare(call: Callable[[], None], watched: Sequence[Watched], seconds: float) -> Times:
    """Time a call as it is, and with our norms in the place of those watched."""

    def around(name: str) -> AbstractContextManager[object]:
        return _with_ours(watched) if name == "ours" else nullcontext()

    calls = {"own": call, "ours": call}
    return Times(**measure.medians(calls, around=around, seconds=seconds))


@contextmanager
def _with_ours(watched: Sequence[Watched]) -> Iterator[None]:
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


def _grad_mode(model: nn.Module) -> Any:
    return nullcontext() if model.training else torch.no_grad()
