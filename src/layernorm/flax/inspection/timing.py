"""Times norms and their model, compiled, as they are and with ours."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from layernorm.flax.inspection.norms import Watched, arrays_of, random_like
from layernorm.flax.inspection.runners import NNX, Intercepted, Linen
from layernorm.inspection import measure
from layernorm.inspection.findings import Times
from layernorm.inspection.messages import NOTHING_TO_CONVERT
from layernorm.inspection.report import Report


def time_norm(watched: Watched) -> None:
    """Time a norm by itself, and ours in its place."""
    if not watched.is_plain:
        return
    given = (watched.variables, watched.x)
    calls = {"own": watched.apply}
    if watched.ours is not None:
        calls["ours"] = watched.ours
    found = _medians(calls, given, measure.OF_A_NORM)
    watched.seconds = found["own"]
    if watched.ours is not None:
        watched.entry.forward = Times(**found)
        trained = {name: _differentiated(each) for name, each in calls.items()}
        found = _medians(trained, (*given, watched.dy), measure.OF_A_NORM)
        watched.entry.training = Times(**found)


def time_model(
    run: Linen | NNX,
    watched: Collection[Watched],
    inputs: Any,
    keywords: Any,
    output: Any,
    report: Report,
) -> None:
    """Time the model as it is, and with our classes."""
    given, structure = jax.tree.flatten((inputs, keywords))
    variables, of_variables = jax.tree.flatten(run.variables)
    is_array = [isinstance(each, Array) for each in given]
    is_trained = [jnp.issubdtype(jnp.result_type(each), jnp.floating) for each in variables]

    def model(ours: bool) -> Callable[..., Any]:
        def intercept(call: Intercepted) -> Any:
            if not ours or call.ours is None:
                return call.original()
            return call.ours(call.variables, *call.args, **call.keywords)

        def forward(trained: Sequence[Any], arrays: Sequence[Any]) -> Any:
            args, named = jax.tree.unflatten(structure, _merged(given, arrays, is_array))
            state = jax.tree.unflatten(of_variables, _merged(variables, trained, is_trained))
            return arrays_of(run(state, args, named, intercept))

        return forward

    arrays = [each for each, wanted in zip(given, is_array, strict=True) if wanted]
    trained = [each for each, wanted in zip(variables, is_trained, strict=True) if wanted]
    calls = {"own": model(ours=False)}
    if any(each.ours is not None for each in watched):
        calls["ours"] = model(ours=True)
    found = _medians(calls, (trained, arrays), measure.OF_THE_MODEL)
    for each in watched:
        if each.seconds is not None:
            each.entry.share = each.entry.calls * each.seconds / found["own"]
    report.share = measure.share_of_all(report.norms)
    if "ours" not in calls:
        report.notes.append(NOTHING_TO_CONVERT)
        return
    report.forward = Times(**found)
    dys = random_like(arrays_of(output))
    if dys and trained:
        of_loss = {
            name: lambda trained, arrays, dys, each=each: jax.vjp(
                lambda given: each(given, arrays), trained
            )[1](dys)
            for name, each in calls.items()
        }
        found = _medians(of_loss, (trained, arrays, dys), measure.OF_THE_MODEL)
        report.training = Times(**found)


def _differentiated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of its arguments and dy that returns the arguments' gradients."""
    return lambda *given: jax.vjp(function, *given[:-1])[1](given[-1])


def _merged(values: Sequence[Any], others: Sequence[Any], chosen: Sequence[bool]) -> list[Any]:
    """Return the values with the others in the chosen places."""
    following: Iterator[Any] = iter(others)
    return [
        next(following) if is_chosen else each
        for each, is_chosen in zip(values, chosen, strict=True)
    ]


def _medians(calls: dict[str, Callable[..., Any]], given: Any, seconds: float) -> dict[str, float]:
    """Time the calls, compiled."""
    compiled = {name: jax.jit(call) for name, call in calls.items()}
    timed = {
        name: functools.partial(lambda call: jax.block_until_ready(call(*given)), call)
        for name, call in compiled.items()
    }
    return measure.medians(timed, around=lambda name: nullcontext(), seconds=seconds)
