"""The results of a benchmark as Markdown tables, for docs/performance.md."""

from layernorm.cli.bench.results import COPY, OURS, Report, Result
from layernorm.cli.bench.summary import summarize


def as_markdown(report: Report) -> str:
    """Return a table of every cell, and one that sums up each section."""
    return "\n".join([*_cells(report), "", *_summary(report)])


def _cells(report: Report) -> list[str]:
    providers = list(dict.fromkeys(each.provider for each in report.results))
    providers.sort(key=lambda name: {COPY: 0, OURS: 1}.get(name, 2))
    lines = [
        f"| microseconds | threads | {' | '.join(providers)} |",
        f"|---|--:|{'--:|' * len(providers)}",
    ]
    rows: dict[tuple[str, int], dict[str, Result]] = {}
    for each in report.results:
        work = f"{each.cell.section}, {each.cell.label}"
        rows.setdefault((work, each.threads), {})[each.provider] = each
    for (work, threads), found in rows.items():
        texts = [_text(found.get(provider)) for provider in providers]
        lines.append(f"| {work} | {threads} | {' | '.join(texts)} |")
    return lines


def _summary(report: Report) -> list[str]:
    lines = [
        "| against the fastest peer | threads | cells | geometric mean | worst | where |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for each in summarize(report.results):
        if each.geometric_mean is not None and each.worst is not None:
            lines.append(
                f"| {each.section} | {each.threads} | {each.cells} | {each.geometric_mean:.2f}x "
                f"| {each.worst:.2f}x | {each.worst_cell}, {each.worst_against} |"
            )
    return lines


def _text(result: Result | None) -> str:
    if result is None or result.timing is None:
        return "-"
    microseconds = result.timing.median * 1e6
    decimals = 2 if microseconds < 10 else 1 if microseconds < 100 else 0
    mark = "" if result.within_bounds else "\\*"
    text = f"{microseconds:,.{decimals}f}{mark}"
    return f"**{text}**" if result.provider == OURS else text
