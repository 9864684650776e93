"""Geometric means and worst cells against the fastest peer."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from layernorm.cli.bench.results import COPY, OURS, Result


@dataclass(frozen=True)
class CellSummary:
    """Our speed in one cell, relative to the fastest peer and to a copy of the same bytes.

    `share_of_copy`: the time of a copy divided by ours; backward, which moves three arrays where a
    copy moves two, of one and a half copies.
    """

    section: str
    threads: int
    label: str
    fastest_peer: str | None
    times_fastest_peer: float | None
    share_of_copy: float


@dataclass(frozen=True)
class SectionSummary:
    """Our speed in one section: geometric means over its cells, and the worst against a peer."""

    section: str
    threads: int
    cells: int
    share_of_copy: float
    geometric_mean: float | None
    worst: float | None
    worst_cell: str | None
    worst_against: str | None


def summarize(results: Sequence[Result]) -> list[SectionSummary]:
    """Sum up each section, in the order in which they were measured."""
    sections: dict[tuple[str, int], list[CellSummary]] = {}
    for each in summarize_cells(results):
        sections.setdefault((each.section, each.threads), []).append(each)
    return [_summarize_section(cells) for cells in sections.values()]


def summarize_cells(results: Sequence[Result]) -> list[CellSummary]:
    """Compare ours with the fastest peer and the copy in each cell."""
    cells: dict[tuple[str, int, str], dict[str, Result]] = {}
    for each in results:
        if each.timing is not None:
            key = (each.cell.section, each.threads, each.cell.label)
            cells.setdefault(key, {})[each.provider] = each
    summaries = []
    for (section, threads, label), found in cells.items():
        if OURS not in found:
            continue
        seconds = {name: each.timing.median for name, each in found.items() if each.timing}
        peers = {name: time for name, time in seconds.items() if name not in (OURS, COPY)}
        fastest = min(peers, key=lambda name: peers[name], default=None)
        ratio = peers[fastest] / seconds[OURS] if fastest else None
        share = found[OURS].gigabytes_a_second / found[COPY].gigabytes_a_second
        summaries.append(CellSummary(section, threads, label, fastest, ratio, share))
    return summaries


def _summarize_section(cells: Sequence[CellSummary]) -> SectionSummary:
    compared = [cell for cell in cells if cell.times_fastest_peer is not None]
    ratios = [cell.times_fastest_peer or 0.0 for cell in compared]
    worst = compared[ratios.index(min(ratios))] if compared else None
    return SectionSummary(
        section=cells[0].section,
        threads=cells[0].threads,
        cells=len(cells),
        share_of_copy=statistics.geometric_mean(cell.share_of_copy for cell in cells),
        geometric_mean=statistics.geometric_mean(ratios) if compared else None,
        worst=worst.times_fastest_peer if worst else None,
        worst_cell=worst.label if worst else None,
        worst_against=worst.fastest_peer if worst else None,
    )
