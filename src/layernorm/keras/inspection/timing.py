"""Times norms and their model, as they are and with ours."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from layernorm.inspection import measure
from layernorm.inspection.findings import Times
from layernorm.inspection.messages import NOTHING_TO_CONVERT
from layernorm.inspection.report import Report
from layernorm.keras.conversion import swap, swap_back
from layernorm.keras.inspection.backend import BACKEND, compiled, finished, gradients_of
from layernorm.keras.inspection.norms import Runner, Watched, applied


def time_norm(watched: Watched) -> None:
    """Time a norm by itself, and ours in its place."""
    if watched.x is None:
        return
    layer = watched.layer
    weights = [each.value for each in layer.trainable_variables]

    def forward(x: Any, weights: Any) -> Any:
        return applied(layer, x, weights)

    def training(x: Any, weights: Any, dy: Any) -> Any:
        return gradients_of(lambda x, *given: [applied(layer, x, given)], [x, *weights], [dy])

    swapped = [watched] if watched.to_convert else []
    found = _medians(forward, (watched.x, weights), swapped, measure.OF_A_NORM)
    watched.seconds = found["own"]
    if not swapped:
        return
    watched.entry.forward = Times(**found)
    if watched.dy is not None:
        given = (watched.x, weights, watched.dy)
        watched.entry.training = Times(
            **_medians(training, given, swapped, measure.OF_A_NORM, needs_gradients=True)
        )


def time_model(run: Runner, called: Sequence[Watched], dys: Sequence[Any], report: Report) -> None:
    """Time the model as it is, and with our layers."""
    given = (run.weights, run.arrays)
    if any(each.to_convert for each in called):
        report.forward = Times(**_medians(run, given, called, measure.OF_THE_MODEL))
        own = report.forward.own
    else:
        report.notes.append(NOTHING_TO_CONVERT)
        own = _medians(run, given, (), measure.OF_THE_MODEL)["own"]
    for each in called:
        if each.seconds is not None:
            each.entry.share = each.entry.calls * each.seconds / own
    report.share = measure.share_of_all(report.norms)
    if report.forward is None or not (dys and run.weights) or BACKEND == "numpy":
        return

    def backward(weights: Any, arrays: Any, dys: Any) -> Any:
        return gradients_of(lambda *given: run(given, arrays), weights, dys)

    report.training = Times(
        **_medians(backward, (*given, dys), called, measure.OF_THE_MODEL, needs_gradients=True)
    )


def _medians(
    function: Any,
    given: Any,
    watched: Sequence[Watched],
    seconds: float,
    *,
    needs_gradients: bool = False,
) -> dict[str, float]:
    """Time a call as it is, "own", and if any are watched with our layers in their place, "ours".

    Compiled, where the backend compiles.
    """

    def around(name: str) -> AbstractContextManager[object]:
        return _swapped(watched) if name == "ours" else nullcontext()

    names = ("own", "ours") if watched else ("own",)
    programs = {name: compiled(function, needs_gradients) for name in names}
    calls = {
        name: functools.partial(lambda call: finished(call(*given)), call)
        for name, call in programs.items()
    }
    return measure.medians(calls, around=around, seconds=seconds)


@contextlib.contextmanager
def _swapped(watched: Sequence[Watched]) -> Iterator[None]:
    """Make the layers ours; what Keras has traced before stays as it is."""
    with contextlib.ExitStack() as back:
        for each in watched:
            if each.to_convert:
                swap(each.layer)
                back.callback(swap_back, each.layer)
        yield
