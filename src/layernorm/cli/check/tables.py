"""The tables of `layernorm check`."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from layernorm.cli.check.results import Measurement, Report
from layernorm.cli.check.summary import summarize
from layernorm.cli.console import make_table
from layernorm.cli.problem import TYPES
from layernorm.cli.providers import GRADIENT_PEERS

if TYPE_CHECKING:
    from rich.console import Console

GRADIENTS = {"dx": ("dx",), "dweight, dbias": ("dweight", "dbias")}

SHOWN_GRADIENT_TYPES = ("float32", "bfloat16")
"""The types whose peers' gradients are printed, to keep it short; --json has all."""

HEADINGS = {"torch.compile": "torch\ncompile", "onnxruntime": "onnx\nruntime"}
"""Names on two lines, so that all peers fit into 80 characters."""


def print_report(report: Report, console: "Console") -> None:
    """Print our errors, the peers', the promises, and the verdict."""
    types = [name for name in TYPES if any(each.type == name for each in report.ours)]
    _print_ours(report.ours, types, console)
    for type_name in types:
        _print_peers([each for each in report.peers if each.type == type_name], type_name, console)
    for name, reason in report.missing.items():
        console.print(f"missing peer: {name}: {reason}", style="dim")
    for name, reason in report.failures.items():
        console.print(f"failed: {name}: {reason}", style="yellow", markup=False)
    for promise in report.promises:
        answer = "[green]yes[/]" if promise.holds else f"[red]NO: {', '.join(promise.broken)}[/]"
        console.print(f"{promise.text}: {answer}")
    _print_verdict(report, console)


def print_summary(report: Report, console: "Console") -> None:
    """Print the worst errors in each type, and the verdict."""
    headings = ["worst ulp", "y", "dx", "dweight, dbias", "worst peer's y"]
    rows = []
    for each in summarize(report):
        ours = (each.y, each.dx, each.parameters)
        peer = f"{_number(each.peer_y.error)} ({each.peer_y.provider})" if each.peer_y else "-"
        rows.append([each.type, *map(_within_bound, ours), peer])
    console.print(make_table(headings, rows))
    _print_verdict(report, console)


def _within_bound(worst: Measurement | None) -> str:
    if worst is None:
        return "-"
    return f"{_number(worst.error)} {'<=' if worst.holds else '>'} {worst.bound:g}"


def _print_ours(
    measurements: Sequence[Measurement], types: Sequence[str], console: "Console"
) -> None:
    columns = {
        f"{type_name}\n<= {_bound(measurements, type_name, 'y'):g}": _picker(type_name, ("y",))
        for type_name in types
    }
    console.print("layernorm: y, worst error in ulp of the type", style="bold")
    console.print(_table(measurements, columns, broken_style="bold red"))
    for heading, parts in GRADIENTS.items():
        columns = {
            f"{type_name}\n<= {_bound(measurements, type_name, parts[0]):g}": _picker(
                type_name, parts
            )
            for type_name in types
        }
        console.print(
            f"layernorm: {heading}, worst error in float32 ulp (float64: its own)", style="bold"
        )
        console.print(_table(measurements, columns, broken_style="bold red"))


def _print_peers(measurements: Sequence[Measurement], type_name: str, console: "Console") -> None:
    providers = _unique(each.provider for each in measurements)
    columns = {HEADINGS.get(name, name): _picker(type_name, ("y",), name) for name in providers}
    if columns:
        bound = _bound(measurements, type_name, "y")
        console.print(
            f"peers: {type_name} y, worst error in ulp (our bound: {bound:g})", style="bold"
        )
        console.print(_table(measurements, columns, broken_style="yellow"))
    columns = {
        f"{name}\n{part}": _picker(type_name, (part,), name)
        for name in GRADIENT_PEERS
        for part in ("dx", "dweight", "dbias")
        if any((each.provider, each.part) == (name, part) for each in measurements)
    }
    if columns and type_name in SHOWN_GRADIENT_TYPES:
        bounds = ", ".join(
            f"{_bound(measurements, type_name, part):g}" for part in ("dx", "dweight", "dbias")
        )
        console.print(
            f"peers: {type_name} gradients, worst error in float32 ulp (our bounds: {bounds})",
            style="bold",
        )
        console.print(_table(measurements, columns, broken_style="yellow"))


def _print_verdict(report: Report, console: "Console") -> None:
    for each in report.ours:
        if not each.holds:
            console.print(
                f"[red]broken[/]: {each.part} of {each.input}, {each.type}: "
                f"{_number(each.error)} ulp, the bound is {each.bound:g}"
            )
    if report.holds:
        console.print(
            f"[bold green]The contract holds[/]: {len(report.ours)} measurements, "
            f"{len(report.promises)} promises."
        )
    else:
        console.print("[bold red]The contract is broken.[/]")


def _picker(
    type_name: str, parts: Sequence[str], provider: str | None = None
) -> Callable[[Measurement], bool]:
    def belongs(each: Measurement) -> bool:
        return (
            each.type == type_name
            and each.part in parts
            and (provider is None or each.provider == provider)
        )

    return belongs


def _table(
    measurements: Sequence[Measurement],
    columns: dict[str, Callable[[Measurement], bool]],
    *,
    broken_style: str,
) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0) if len(columns) > 6 else (0, 1))
    table.add_column("input", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for name in _unique(each.input for each in measurements):
        cells = []
        for belongs in columns.values():
            found = [each for each in measurements if each.input == name and belongs(each)]
            cells.append(_cell(found, broken_style=broken_style))
        table.add_row(name, *cells)
    return table


def _cell(found: Sequence[Measurement], *, broken_style: str) -> str:
    if not found:
        return "-"
    worst = max(found, key=lambda each: each.error)
    text = _number(worst.error)
    return text if worst.holds else f"[{broken_style}]{text}[/]"


def _number(error: float) -> str:
    """Write an error in at most five characters: 0.50, 12.4, 620, 2e4."""
    if not math.isfinite(error):
        return "NaN"
    if error < 999.5:
        return f"{error:.{2 if error < 9.995 else 1 if error < 99.95 else 0}f}"
    digits, exponent = f"{error:.0e}".split("e")
    return f"{digits}e{int(exponent)}"


def _bound(measurements: Sequence[Measurement], type_name: str, part: str) -> float:
    return next(m.bound for m in measurements if (m.type, m.part) == (type_name, part))


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
