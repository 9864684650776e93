"""The report as one HTML page, with plots, that needs no other file."""

from __future__ import annotations

import html as markup
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

from layernorm.inspection import tables
from layernorm.inspection.findings import Findings, Norm

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; }
.note { font-size: 13px; max-width: 60rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td:first-child { font-family: ui-monospace, monospace; }
tbody tr:hover { background: var(--faint); }
td.over { color: #d55e00; font-weight: 600; }
figure { margin: 1rem 0; background: white; border-radius: 6px; padding: .5rem; }
figure svg { display: block; width: 100%; height: auto; }
"""

_BLUE, _ORANGE, _GREEN, _PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"

_COLORS = {"y": _BLUE, "dx": _ORANGE, "dweight": _GREEN, "dbias": _PURPLE}


def html(findings: Findings) -> str:
    """Return the page.

    Raises: ImportError where matplotlib is not installed, with the command that installs it.
    """
    title = f"Norms of {findings.model.rpartition('.')[2]}"
    parts = [f"<h1>{markup.escape(title)}</h1>"]
    parts += [f"<p>{markup.escape(each)}</p>" for each in tables.summary(findings)]
    parts += [_figure(findings)]
    parts += [_table(each) for each in tables.tables(findings)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{markup.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _table(table: tables.Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(_cell(each, tag) for each in cells) + "</tr>"

    rows = "\n".join(row(each, "td") for each in table.rows)
    return (
        f"<h2>{markup.escape(table.title)}</h2>\n"
        f'<p class="note">{markup.escape(table.note)}</p>\n<div class="table"><table>\n'
        f"<thead>{row(table.headings, 'th')}</thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _cell(text: str, tag: str) -> str:
    kind = ' class="over"' if text.endswith("*") else ""
    return f"<{tag}{kind}>{markup.escape(text)}</{tag}>"


def load_matplotlib() -> tuple[Any, Any]:
    """Return matplotlib's Figure and ticker: without pyplot, whose state belongs to the user.

    Raises: ImportError where it is not installed, with the command that installs it.
    """
    try:
        from matplotlib import ticker
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ImportError(
            "the page's plots are drawn with matplotlib, which is not installed: "
            "pip install matplotlib"
        ) from None
    return Figure, ticker


def _figure(findings: Findings) -> str:
    figure_of, ticker = load_matplotlib()
    norms = [each for each in findings.norms if each.calls]
    plots: list[tuple[str, Callable[[Any, Sequence[Norm]], None]]] = [
        ("error / largest that ours may have", _draw_errors),
        ("share of the forward, %", _draw_shares),
        ("weight and bias: range and mean", _draw_parameters),
    ]
    if any(each.rows and each.rows.mean_over_std is not None for each in norms):
        plots.insert(2, ("|mean| / std of the rows", _draw_means))
    figure = figure_of(figsize=(15, 1.8 + 0.24 * len(norms)), layout="constrained")
    panels = figure.subplots(1, len(plots), sharey=True)
    for panel, (title, draw) in zip(panels, plots, strict=True):
        draw(panel, norms)
        panel.set_title(title, fontsize=11)
        panel.grid(alpha=0.25)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=9)
        panel.xaxis.set_minor_formatter(ticker.NullFormatter())
    names = [_shortened(each.name) for each in norms]
    panels[0].set_yticks(range(len(norms)), names, parse_math=False)
    panels[0].set_ylim(len(norms) - 0.4, -0.6)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    return f"<figure>{text[text.index('<svg') :]}</figure>"


def _draw_errors(panel: Any, norms: Sequence[Norm]) -> None:
    for name, color in _COLORS.items():
        places = [place for place, each in enumerate(norms) if name in each.errors]
        ratios = [norms[place].errors[name] / norms[place].bounds[name] for place in places]
        if places:
            panel.plot(_shown(ratios), places, "o", color=color, ms=4, label=name)
    panel.axvline(1, color="0.4", linestyle="--", linewidth=1)
    panel.set_xscale("log")
    if panel.get_legend_handles_labels()[0]:
        panel.legend(fontsize=8, ncols=2)


def _draw_shares(panel: Any, norms: Sequence[Norm]) -> None:
    panel.barh(range(len(norms)), [100 * (each.share or 0) for each in norms], color=_BLUE)
    panel.set_xlim(left=0)


def _draw_means(panel: Any, norms: Sequence[Norm]) -> None:
    for place, each in enumerate(norms):
        rows = each.rows
        if rows is None or rows.mean_over_std is None or rows.typical_mean_over_std is None:
            continue
        ends = _shown([rows.typical_mean_over_std, rows.mean_over_std])
        panel.plot(ends, [place, place], color="0.6", linewidth=1)
        for end, color in zip(ends, ("0.5", _BLUE), strict=True):
            panel.plot(end, place, "o", color=color, ms=4)
    panel.set_xscale("log")
    panel.set_xlabel("median (gray) and largest (blue)", fontsize=9)


def _draw_parameters(panel: Any, norms: Sequence[Norm]) -> None:
    for place, each in enumerate(norms):
        for parameter, shift, color in ((each.weight, -0.15, _BLUE), (each.bias, 0.15, _ORANGE)):
            if parameter is not None:
                ends = [parameter.smallest, parameter.largest]
                panel.plot(ends, [place + shift] * 2, color=color, linewidth=2)
                panel.plot(parameter.mean, place + shift, "o", color=color, ms=4)
    panel.axvline(0, color="0.4", linewidth=0.8)
    panel.set_xlabel("weight (blue) and bias (orange)", fontsize=9)


def _shown(values: Sequence[float]) -> list[float]:
    """Bring values into what a logarithmic axis can show."""
    return [min(max(each, 1e-4), 1e9) if math.isfinite(each) else 1e9 for each in values]


def _shortened(name: str, most: int = 38) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]
