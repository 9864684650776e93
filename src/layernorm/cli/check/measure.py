"""Measures the errors of ours and of the peers, and checks the promises."""

import contextlib
import warnings
from collections.abc import Sequence

import layernorm
from layernorm import accuracy
from layernorm.cli.check.inputs import Input, inputs
from layernorm.cli.check.promises import check_promises
from layernorm.cli.check.results import Measurement, Report
from layernorm.cli.machine import describe_machine, usable_processors
from layernorm.cli.problem import Array, Problem, available_types
from layernorm.cli.progress import Progress, ignore
from layernorm.cli.providers import (
    GRADIENT_PEERS,
    PEERS,
    QUICK_PEERS,
    Provider,
    Unsupported,
    find_providers,
    first_line,
)

QUICK_PEER_TYPES = ("float32",)


def measure(
    *,
    quick: bool = False,
    peers: Sequence[str] | None = None,
    threads: int | None = None,
    front_end: str = "numpy",
    progress: Progress = ignore,
) -> Report:
    """Measure the contract.

    Args:
        quick: smaller arrays, fewer types for the peers.
        peers: their names; None: all that are installed.
        threads: for every provider; None: all usable processors.
        front_end: which of ours is measured, one of `FRONT_ENDS`.
        progress: called before each step.
    Raises: MissingPeersError; ImportError without the front end's framework; ValueError for an
        unknown peer.
    """
    names = (QUICK_PEERS if quick else PEERS) if peers is None else peers
    found = find_providers(threads=threads or usable_processors(), names=names, front_end=front_end)
    types = [each for each in available_types() if each in found.ours.types]
    peer_types = QUICK_PEER_TYPES if quick else types
    work = [
        (each, type_name) for each in inputs(quick=quick) for type_name in types
        if type_name in each.types
    ]  # fmt: skip
    ours: list[Measurement] = []
    theirs: list[Measurement] = []
    failures: dict[str, str] = {}
    for done, (source, type_name) in enumerate(work):
        progress(done, len(work), f"{source.name}, {type_name}")
        problem = source.problem(type_name)
        with contextlib.suppress(Unsupported):  # an axis that the framework's layer does not take
            ours += _errors(found.ours, problem, source)
        for peer in found.peers if type_name in peer_types else ():
            forward_only = not _has_gradients(peer, quick)
            try:
                theirs += _errors(peer, problem, source, forward_only=forward_only)
            except Unsupported:
                continue
            except Exception as error:  # a failing peer is a result, and does not end the check
                failures[f"{peer.name}, {type_name}, {source.name}"] = first_line(error)
    return Report(
        version=layernorm.__version__,
        machine=describe_machine(),
        ours=ours,
        peers=theirs,
        promises=check_promises(found.ours),
        versions=found.versions,
        missing=found.missing,
        failures=failures,
    )


def _errors(
    provider: Provider, problem: Problem, source: Input, *, forward_only: bool = False
) -> list[Measurement]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some inputs are meant to overflow
        (y,) = provider.arrays(provider.forward(problem)())
        errors = {"y": _y_error(y, problem)}
        if not forward_only:
            try:
                gradients = provider.arrays(provider.backward(problem)())
            except Unsupported:
                gradients = ()
            errors |= _gradient_errors(gradients, problem)
    bounds = accuracy.BOUNDS[problem.type_name]
    limit = {"y": bounds.y, "dx": bounds.dx, "dweight": bounds.parameter, "dbias": bounds.parameter}
    return [
        Measurement(source.name, problem.type_name, provider.name, part, error, limit[part])
        for part, error in errors.items()
    ]


def _y_error(y: Array, problem: Problem) -> float:
    return accuracy.y_error(
        y, problem.x, problem.weight, problem.bias, axis=problem.axis, eps=problem.eps
    )


def _gradient_errors(gradients: tuple[Array, ...], problem: Problem) -> dict[str, float]:
    if not gradients:
        return {}
    dx, dweight, dbias = gradients
    x, dy, axis, eps = problem.x, problem.dy, problem.axis, problem.eps
    return {
        "dx": accuracy.dx_error(dx, dy, x, problem.weight, axis=axis, eps=eps),
        "dweight": accuracy.dweight_error(dweight, dy, x, axis=axis, eps=eps),
        "dbias": accuracy.dbias_error(dbias, dy, axis=axis),
    }


def _has_gradients(peer: Provider, quick: bool) -> bool:
    return peer.name in (GRADIENT_PEERS[:1] if quick else GRADIENT_PEERS)
