"""The tables of `layernorm bench`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from layernorm.cli.bench.cells import Cell
from layernorm.cli.bench.results import COPY, OURS, Report, Result
from layernorm.cli.bench.summary import CellSummary, summarize, summarize_cells
from layernorm.cli.console import make_table

if TYPE_CHECKING:
    from rich.console import Console

LARGE_BYTES = 8 * 2**20
"""From this size on, a cell shows GB/s instead of microseconds."""

COLUMNS = 4
"""Cells in one table, so that it fits into 80 characters."""

NOTABLE_LOAD = 0.15


def print_report(report: Report, console: "Console") -> None:
    """Print a table for each section, then the summary."""
    sections: dict[tuple[str, int], list[Result]] = {}
    for each in report.results:
        sections.setdefault((each.cell.section, each.threads), []).append(each)
    summaries = {
        (each.section, each.threads, each.label): each for each in summarize_cells(report.results)
    }
    console.print(
        f"Medians and half the distance between the quartiles, of {report.repeats} interleaved "
        "samples (fewer of calls above 0.1 s). GB/s of useful bytes: x and y; dy, x and dx. "
        "Of a copy: the time of a copy of x / ours; backward, which moves half as much again, of "
        "1.5 copies. "
        "The cache is warm and the output newly allocated unless the heading says otherwise.\n"
    )
    for (section, threads), results in sections.items():
        console.print(f"{section}, {_threads(threads)}", style="bold")
        cells = list(dict.fromkeys(each.cell for each in results))
        for start in range(0, len(cells), COLUMNS):
            console.print(_section_table(results, cells[start : start + COLUMNS], summaries))
    if any(not each.within_bounds and each.timing for each in report.results):
        console.print(
            "* less accurate than our contract allows (--json has the errors)", style="dim"
        )
    for each in report.results:
        if each.timing is None:
            errors = ", ".join(f"{part} {error:.3g} ulp" for part, error in each.errors.items())
            console.print(
                f"[red]not timed[/]: {each.provider} is wrong in {each.cell.section}, "
                f"{each.cell.label}: {errors}"
            )
    for name, reason in report.missing.items():
        console.print(f"missing peer: {name}: {reason}", style="dim")
    for name, reason in report.failures.items():
        console.print(f"failed: {name}: {reason}", style="yellow", markup=False)
    print_summary(report, console)


def _section_table(
    results: Sequence[Result],
    cells: Sequence[Cell],
    summaries: Mapping[tuple[str, int, str], CellSummary],
) -> Table:
    by_place = {(each.provider, each.cell): each for each in results if each.timing}
    table = Table(box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    for cell in cells:
        table.add_column(f"{cell.label}\n{_unit(cell.useful_bytes)}", justify="right")
    for provider in dict.fromkeys(each.provider for each in results):
        texts = [_text(by_place.get((provider, cell))) for cell in cells]
        style = {OURS: "bold green", COPY: "dim"}.get(provider)
        table.add_row(provider, *texts, style=style)
    table.add_section()
    threads = results[0].threads
    found = [summaries.get((cell.section, threads, cell.label)) for cell in cells]
    shares = [f"{each.share_of_copy:.0%}" if each else "-" for each in found]
    table.add_row("of a copy", *shares)
    if any(each and each.times_fastest_peer for each in found):
        table.add_row("times fastest peer", *(_ratio_text(each) for each in found))
    return table


def print_summary(report: Report, console: "Console") -> None:
    """Print our speed in each section, and the verdict."""
    found = [each for each in summarize(report.results) if each.geometric_mean is not None]
    for threads in dict.fromkeys(each.threads for each in found):
        rows = [
            [each.section, f"{each.geometric_mean:.2f}", f"{each.worst:.2f}",
             f"{each.worst_cell}", f"{each.worst_against}", f"{each.share_of_copy:.0%}"]
            for each in found
            if each.threads == threads
        ]  # fmt: skip
        first = f"times as fast as the fastest peer, {_threads(threads)}"
        table = make_table([first, "mean", "worst", "worst in", "its peer", "of a copy"], rows)
        table.columns[0].no_wrap = False  # a long section wraps, so that no number is cut off
        console.print(table)
    _print_verdict(report, console)


def _print_verdict(report: Report, console: "Console") -> None:
    ratios = [each.times_fastest_peer for each in summarize_cells(report.results)]
    compared = [each for each in ratios if each is not None]
    ahead = sum(each > 1 for each in compared)
    if not report.is_right:
        console.print("[bold red]A result is wrong, and is not timed.[/]")
    elif compared:
        console.print(f"[bold green]Faster than every peer in {ahead} of {len(compared)} cells.[/]")
    if report.other_load is not None and report.other_load > NOTABLE_LOAD:
        console.print(
            f"[yellow]Other programs kept {report.other_load:.1f} processors busy meanwhile: "
            "these times are not reliable.[/]"
        )


def _text(result: Result | None) -> str:
    if result is None or result.timing is None:
        return "-"
    timing = result.timing
    relative_spread = (timing.upper - timing.lower) / 2 / timing.median
    large = result.cell.useful_bytes >= LARGE_BYTES
    value = result.gigabytes_a_second if large else timing.median * 1e6
    mark = "" if result.within_bounds else "*"
    return f"{_digits(value)} ±{_digits(value * relative_spread)}{mark}"


def _digits(value: float) -> str:
    """Write three digits and no exponent: 0.82, 8.25, 82.5, 825, 8250."""
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"


def _ratio_text(summary: CellSummary | None) -> str:
    if summary is None or summary.times_fastest_peer is None:
        return "-"
    return f"{summary.times_fastest_peer:.2f}\n{summary.fastest_peer}"


def _unit(useful_bytes: int) -> str:
    return "GB/s" if useful_bytes >= LARGE_BYTES else "µs"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
