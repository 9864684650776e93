"""The results of a benchmark as Markdown tables, for docs/performance.md."""

from layernorm.cli.bench.results import COPY, OURS, Report, Result
from layernorm.cli.bench.summary import CellSummary, summarize, summarize_cells

OF_A_COPY = "of a copy"


def as_markdown(report: Report) -> str:
    """Return a table of every cell, and one that sums up each section."""
    return "\n".join([*_cells(report), "", *_summary(report)])


def _cells(report: Report) -> list[str]:
    providers = list(dict.fromkeys(each.provider for each in report.results))
    peers = [name for name in providers if name not in (COPY, OURS)]
    columns = [COPY, OURS, OF_A_COPY, *peers]
    lines = [
        f"| microseconds | threads | {' | '.join(columns)} |",
        f"|---|--:|{'--:|' * len(columns)}",
    ]
    summaries = {
        (f"{each.section}, {each.label}", each.threads): each
        for each in summarize_cells(report.results)
    }
    rows: dict[tuple[str, int], dict[str, Result]] = {}
    for each in report.results:
        work = f"{each.cell.section}, {each.cell.label}"
        rows.setdefault((work, each.threads), {})[each.provider] = each
    for (work, threads), found in rows.items():
        summary = summaries.get((work, threads))
        texts = {name: _text(found.get(name)) for name in columns}
        if summary is not None:
            texts[OF_A_COPY] = f"{summary.share_of_copy:.0%}"
        lines.append(f"| {work}{_loss(summary)} | {threads} | {' | '.join(texts.values())} |")
    return lines


def _summary(report: Report) -> list[str]:
    lines = [
        "| against the fastest peer | threads | cells | geometric mean | worst | where "
        f"| {OF_A_COPY} |",
        "|---|--:|--:|--:|--:|---|--:|",
    ]
    for each in summarize(report.results):
        if each.geometric_mean is not None and each.worst is not None:
            lines.append(
                f"| {each.section} | {each.threads} | {each.cells} | {each.geometric_mean:.2f}x "
                f"| {each.worst:.2f}x | {each.worst_cell}, {each.worst_against} "
                f"| {each.share_of_copy:.0%} |"
            )
    return lines


def _loss(summary: CellSummary | None) -> str:
    """Name the fastest peer where it is faster than ours."""
    if summary is None or summary.times_fastest_peer is None or summary.times_fastest_peer >= 1:
        return ""
    return f": **slower than {summary.fastest_peer}**"


def _text(result: Result | None) -> str:
    if result is None or result.timing is None:
        return "-"
    microseconds = result.timing.median * 1e6
    decimals = 2 if microseconds < 10 else 1 if microseconds < 100 else 0
    mark = "" if result.within_bounds else "\\*"
    text = f"{microseconds:,.{decimals}f}{mark}"
    return f"**{text}**" if result.provider == OURS else text
