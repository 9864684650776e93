"""Draws the times of `layernorm bench`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from layernorm.cli.bench.results import COPY, OURS, Result
from layernorm.cli.pictures import open_pyplot, save

COLUMNS = 2


def plot_times(results: Sequence[Result], file: Path) -> None:
    """Draw each section: a bar for each provider in each cell, its time relative to ours."""
    sections: dict[str, list[Result]] = {}
    for each in results:
        if each.timing is not None:
            plural = "" if each.threads == 1 else "s"
            title = f"{each.cell.section}, {each.threads} thread{plural}"
            sections.setdefault(title, []).append(each)
    rows = math.ceil(len(sections) / COLUMNS)
    pyplot = open_pyplot()
    figure, grid = pyplot.subplots(rows, COLUMNS, figsize=(7 * COLUMNS, 3.4 * rows), squeeze=False)
    colors = _colors(results)
    for axes, (title, section) in zip(grid.flat, sections.items(), strict=False):
        _draw_section(axes, title, section, colors)
    for axes in grid.flat[len(sections) :]:
        axes.axis("off")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=color) for color in colors.values()]
    figure.legend(handles, list(colors), loc="upper center", ncols=min(len(colors), 10))
    save(figure, file, top=1 - 0.45 / (3.4 * rows))


def _draw_section(
    axes: Any, title: str, section: Sequence[Result], colors: Mapping[str, str]
) -> None:
    labels = list(dict.fromkeys(each.cell.label for each in section))
    providers = list(dict.fromkeys(each.provider for each in section))
    ours = {each.cell.label: each for each in section if each.provider == OURS}
    width = 0.85 / len(providers)
    for each in section:
        reference = ours.get(each.cell.label)
        if reference is None or reference.timing is None or each.timing is None:
            continue
        # By speed and not by time: the copy beside a backward moves fewer bytes.
        height = reference.gigabytes_a_second / each.gigabytes_a_second
        place = labels.index(each.cell.label) + (providers.index(each.provider) + 0.5) * width
        # Bars start at our own line: what is faster hangs below it.
        axes.bar(place - 0.425, height - 1, width, bottom=1, color=colors[each.provider])
    axes.axhline(1, color=colors[OURS], linewidth=2)
    axes.set_xticks(range(len(labels)), labels)
    axes.set(title=title, ylabel="time / ours", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.yaxis.set_minor_formatter("")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.5), max(high, 12))
    axes.grid(axis="y", alpha=0.3)


def _colors(results: Sequence[Result]) -> dict[str, str]:
    providers = list(dict.fromkeys(each.provider for each in results))
    palette = ["#999999", "#2ca02c", *(f"C{index}" for index in (0, 1, 3, 4, 5, 6, 8, 9))]
    ordered = sorted(providers, key=lambda name: {COPY: 0, OURS: 1}.get(name, 2))
    return {name: palette[index % len(palette)] for index, name in enumerate(ordered)}
