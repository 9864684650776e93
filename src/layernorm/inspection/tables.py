"""The tables of a report: headings and cells, for the terminal, for text and for the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from layernorm.inspection.findings import Findings, Norm, Parameter, Times


class Table(NamedTuple):
    """A table, whose first column is text, and what its columns are."""

    title: str
    note: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(findings: Findings) -> list[Table]:
    """Return the tables: what the norms compute and how well; their parameters and times."""
    return [_results(findings), _parameters(findings)]


def summary(findings: Findings) -> list[str]:
    """Return a few sentences on the model as a whole."""
    called = [each for each in findings.norms if each.calls]
    mode = f" in {findings.mode} mode" if findings.mode else ""
    lines = [
        f"{findings.model}{mode}, {findings.framework} on {findings.device}: "
        f"norms: {len(findings.norms)}, calls in a forward: {sum(each.calls for each in called)}"
        + ("" if findings.share is None else f", share of its time: {findings.share:.1%}")
    ]
    for each in findings.norms:
        if not each.calls:
            lines.append(f"{each.name} was not called.")
    worst = [(error / each.bounds[name], name, each) for each in called
             for name, error in each.errors.items() if error > each.bounds[name]]  # fmt: skip
    if worst:
        _, name, norm = max(worst, key=lambda each: each[0])
        names = {each.name for *_, each in worst}
        lines.append(
            f"Norms with larger errors than ours may have: {len(names)}; the largest: {name} of "
            f"{norm.name}, {number(norm.errors[name])} ulp."
        )
    kinds = {
        "convert takes": sum(each.convert == "yes" for each in findings.norms),
        "accelerate() takes": sum("accelerate()" in each.convert for each in findings.norms),
        "ours already": sum(each.convert == "ours" for each in findings.norms),
    }
    lines.append(", ".join(f"{kind}: {count}" for kind, count in kinds.items() if count))
    for what, times in (("forward", findings.forward), ("forward and backward", findings.training)):
        if times is not None:
            lines.append(f"The model's {what}: {_times(times)} with ours.")
    return [*filter(None, lines), *(f"Note: {each}." for each in findings.notes)]


def text(findings: Findings) -> str:
    """Return the report as plain text."""
    parts = ["\n".join(summary(findings))]
    for table in tables(findings):
        columns = list(zip(table.headings, *table.rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        lines = [f"{table.title}. {table.note}"]
        for row in (table.headings, *table.rows):
            first, *rest = (
                cell.rjust(width) if place else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  ".join([first, *rest]).rstrip())
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def number(value: float | None) -> str:
    """Format a number to three digits."""
    if value is None:
        return "-"
    if not math.isfinite(value) or abs(value) < 1000 or abs(value) >= 1e9:
        return f"{value:.3g}"
    return f"{float(f'{value:.3g}'):,.0f}"


def _results(findings: Findings) -> Table:
    headings = (
        "", "norm", "shape", "type", "calls", "time", "y", "dx", "dweight", "dbias", "mean/std"
    )  # fmt: skip
    rows = [
        (
            each.name, each.kind.rpartition(".")[2], "x".join(map(str, each.normalized_shape)),
            _types(each), str(each.calls),
            "-" if each.share is None else f"{each.share:.1%}",
            *(_error(each, name) for name in ("y", "dx", "dweight", "dbias")),
            number(each.rows.mean_over_std if each.rows else None),
        )
        for each in findings.norms
    ]  # fmt: skip
    note = (
        "The first call of each norm. type: of x, parameters and y. time: share of the forward's. "
        "y, dx, dweight, dbias: distance from float64 in ulp, * where larger than ours may be; of "
        "16-bit gradients in ulp of float32, beyond the last rounding. mean/std: the largest "
        "|mean| / standard deviation of a row."
    )
    return Table("What the norms compute", note, headings, rows)


def _parameters(findings: Findings) -> Table:
    headings = ("", "weight", "bias", "dead", "forward", "and backward", "convert")
    rows = [
        (
            each.name, _range(each.weight), _range(each.bias),
            "-" if each.dead is None else str(each.dead),
            _times(each.forward), _times(each.training), each.convert,
        )
        for each in findings.norms
    ]  # fmt: skip
    note = (
        "weight, bias: smallest to largest element. dead: units whose weight is at most a "
        "thousandth of the median. forward, and backward: median times of the call by itself, as "
        "it is -> with ours."
    )
    return Table("Parameters and times", note, headings, rows)


def _types(norm: Norm) -> str:
    parameter = norm.weight or norm.bias
    types = [norm.x_type, *([parameter.type] if parameter else []), norm.y_type]
    return "/".join(dict.fromkeys(each for each in types if each)) or "-"


def _error(norm: Norm, name: str) -> str:
    if name not in norm.errors:
        return "-"
    return number(norm.errors[name]) + "*" * (norm.errors[name] > norm.bounds[name])


def _range(parameter: Parameter | None) -> str:
    if parameter is None:
        return "-"
    return f"{number(parameter.smallest)} to {number(parameter.largest)}"


def _times(times: Times | None) -> str:
    if times is None:
        return "-"
    return f"{_seconds(times.own)} -> {_seconds(times.ours)} ({times.gain:.2f}x)"


def _seconds(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
