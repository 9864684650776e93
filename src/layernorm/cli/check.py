"""`layernorm check`: the accuracy contract, measured here, for us and for every installed peer."""

import contextlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import layernorm
from layernorm import accuracy
from layernorm.cli.check_promises import Promise, check_promises
from layernorm.cli.inputs import Input, inputs
from layernorm.cli.machine import describe_machine, usable_processors
from layernorm.cli.problem import Array, Problem, available_types
from layernorm.cli.providers import (
    GRADIENT_PEERS,
    PEERS,
    Provider,
    Unsupported,
    find_providers,
    parse_names,
)

if TYPE_CHECKING:
    from rich.console import Console

PARTS = ("y", "dx", "dweight", "dbias")

QUICK_PEERS = tuple(name for name in PEERS if name != "torch.compile")
"""torch.compile takes seconds for every shape."""

QUICK_PEER_TYPES = ("float32",)


@dataclass(frozen=True)
class Measurement:
    """The worst error of one provider for one input in one type."""

    input: str
    type: str
    provider: str
    part: str
    error: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the error is within the contract's bound."""
        return self.error <= self.bound


@dataclass(frozen=True)
class Report:
    """What was measured. `holds` is about us alone: the peers made no such promise."""

    ours: list[Measurement]
    peers: list[Measurement]
    promises: list[Promise]
    versions: dict[str, str]
    missing: dict[str, str]
    failures: dict[str, str]

    @property
    def holds(self) -> bool:
        """Whether we keep the contract."""
        return all(each.holds for each in self.ours) and all(each.holds for each in self.promises)

    def as_dict(self) -> dict[str, Any]:
        """Return the whole as what JSON can hold."""
        return {
            "command": "check",
            "version": layernorm.__version__,
            "holds": self.holds,
            "machine": describe_machine(),
            "versions": self.versions,
            "missing_peers": self.missing,
            "failed_peers": self.failures,
            "ours": [{**asdict(each), "holds": each.holds} for each in self.ours],
            "promises": [asdict(each) for each in self.promises],
            "peers": [asdict(each) for each in self.peers],
        }


def measure(
    *,
    quick: bool = False,
    peers: str | None = None,
    threads: int | None = None,
    front_end: str = "numpy",
    console: "Console | None" = None,
) -> Report:
    """Measure the contract.

    Args:
        quick: smaller arrays, fewer types for the peers.
        peers: names with commas between, "none", or None for all that are installed.
        threads: for every provider; None: all usable processors.
        front_end: which of ours is measured, one of `FRONT_ENDS`.
        console: where to show the progress.
    Raises: MissingPeersError, ImportError without the front end's framework, ValueError for an
        unknown peer.
    """
    names = parse_names(peers, QUICK_PEERS if quick else PEERS)
    count = threads or usable_processors()
    found = find_providers(threads=count, names=names, front_end=front_end)
    types = [each for each in available_types() if each in found.ours.types]
    peer_types = QUICK_PEER_TYPES if quick else types
    work = [
        (each, type_name) for each in inputs(quick=quick) for type_name in types
        if type_name in each.types
    ]  # fmt: skip
    ours: list[Measurement] = []
    theirs: list[Measurement] = []
    failures: dict[str, str] = {}
    with _progress(console, len(work)) as advance:
        for each, type_name in work:
            problem = each.problem(type_name)
            with contextlib.suppress(Unsupported):  # an axis that the framework's layer has not
                ours += _errors(found.ours, problem, each)
            if type_name in peer_types:
                for peer in found.peers:
                    try:
                        theirs += _errors(
                            peer, problem, each, forward_only=not _has_gradients(peer, quick)
                        )
                    except Unsupported:
                        continue
                    except Exception as error:  # a peer's failure is a finding, not our end
                        failures[f"{peer.name}, {type_name}, {each.name}"] = _first_line(error)
            advance()
    return Report(
        ours=ours,
        peers=theirs,
        promises=check_promises(found.ours),
        versions=found.versions,
        missing=found.missing,
        failures=failures,
    )


def show(report: Report, console: "Console") -> None:
    """Print the report as tables."""
    from layernorm.cli.check_tables import print_report

    print_report(report, console)


def _errors(
    provider: Provider, problem: Problem, source: Input, *, forward_only: bool = False
) -> list[Measurement]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflow is what some inputs are for
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


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


@contextmanager
def _progress(console: "Console | None", total: int) -> Iterator[Any]:
    if console is None:
        yield lambda: None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring errors", total=total)
        yield lambda: progress.advance(task)
