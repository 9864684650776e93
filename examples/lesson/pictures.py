"""Draws the pictures of the lesson. No layer norm is computed here.

The colors are those of Okabe and Ito, which people with color-blindness can tell apart; each curve
also has a line style of its own. The background is white wherever the notebook is shown.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Polygon

BLUE, RED, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
PALE = "#E8E8E8"
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def set_style() -> None:
    """Set fonts, colors and grid of all pictures."""
    plt.rcParams.update(
        {
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.titlesize": 12,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.3,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 2,
            "axes.prop_cycle": plt.cycler(
                color=[BLUE, RED, GREEN, PURPLE, ORANGE], linestyle=DASHES
            ),
        }
    )


def panels(count: int, *, width: float = 5.2, height: float = 3.6) -> Sequence[Axes]:
    """Return so many pairs of axes, side by side."""
    _, axes = plt.subplots(1, count, figsize=(width * count, height), squeeze=False)
    return axes[0]


def curves(
    x: Any, lines: Mapping[str, Any], title: str, *, axes: Axes | None = None, **labels: Any
) -> None:
    """Draw one labeled line for each entry; `labels` are xlabel, xscale, xticks, ylabel, ..."""
    axes = panels(1, width=7)[0] if axes is None else axes
    for label, y in lines.items():
        axes.plot(x, y, label=label)
    axes.set(title=title, **labels)
    if "xticks" in labels:
        axes.minorticks_off()
    if len(lines) > 1:
        axes.legend()


def losses(runs: Mapping[str, Sequence[float]], title: str, *, axes: Axes, **labels: Any) -> None:
    """Draw training losses: pale for each step, and a running average over 15 steps."""
    window = 15
    for label, loss in runs.items():
        average = np.convolve(loss, np.ones(window) / window, mode="valid")
        steps = np.arange(len(average)) + window // 2 + 1
        (line,) = axes.plot(steps, average, label=label)
        every = np.arange(1, len(loss) + 1)
        axes.plot(every, loss, color=line.get_color(), linestyle="-", linewidth=0.8, alpha=0.25)
    axes.set(title=title, xlabel="step", ylabel="training loss", **labels)
    axes.legend()


def number_lines(rows: Mapping[str, Any], title: str) -> None:
    """Draw each row of numbers as dots on a line of its own, the first row on top."""
    axes = panels(1, width=8, height=3)[0]
    heights = range(len(rows), 0, -1)
    axes.plot(np.stack([*rows.values()]), heights, color=PALE, linestyle="-", zorder=0)
    for height, values in zip(heights, rows.values(), strict=True):
        axes.axhline(height, color="black", linewidth=0.8, zorder=1)
        axes.plot(values, np.full(len(values), height), "o", color=BLUE, markersize=10)
        numbers, counts = np.unique(values.round(3), return_counts=True)
        for place, (number, count) in enumerate(zip(numbers, counts, strict=True)):
            text = f"{number:.3g}" + (" twice" if count == 2 else "")
            offset = (0, -20 if place % 2 else 9)  # below and above in turns: they may be close
            axes.annotate(text, (number, height), offset, textcoords="offset points", ha="center")
    axes.axvline(0, color=RED, linestyle="--", linewidth=1)
    axes.set(title=title, ylim=(0.4, len(rows) + 0.5))
    axes.set_yticks(heights, labels=rows)
    axes.grid(False)


def tables(arrays: Mapping[str, Any], title: str) -> None:
    """Draw arrays as colored tables with their numbers."""
    axes = panels(len(arrays), width=5.6, height=3.4)
    for place, (label, array) in zip(axes, arrays.items(), strict=True):
        limit = np.abs(array).max()
        place.imshow(array, cmap="RdBu_r", vmin=-1.3 * limit, vmax=1.3 * limit, aspect="auto")
        for (row, column), value in np.ndenumerate(array):
            place.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=9)
        place.set(title=label, xlabel="feature (axis 1, the last)", ylabel="sample (axis 0)")
        place.set(xticks=range(array.shape[1]), yticks=range(array.shape[0]))
        place.grid(False)
    axes[0].figure.suptitle(title)


def changes(before: Mapping[str, Any], after: Mapping[str, Any], title: str) -> None:
    """Draw two versions of each list of numbers as bars side by side."""
    axes = panels(len(before), width=5.2, height=3.2)
    for place, label in zip(axes, before, strict=True):
        positions = np.arange(len(before[label]))
        place.bar(positions - 0.2, before[label], width=0.4, color=BLUE, label="before")
        place.bar(positions + 0.2, after[label], width=0.4, color=ORANGE, hatch="//", label="after")
        place.axhline(0, color="black", linewidth=0.8)
        place.set(title=label, xlabel="index", ylabel="value", xticks=positions)
    axes[0].legend()
    axes[0].figure.suptitle(title)


def matrix(values: Any, title: str, *, xlabel: str, ylabel: str) -> None:
    """Draw a matrix as an image: blue is negative, red positive, white zero."""
    axes = panels(1, width=5.4, height=4.2)[0]
    limit = np.abs(values).max()
    image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.figure.colorbar(image, ax=axes, label="slope")
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.set(xticks=range(values.shape[1]), yticks=range(values.shape[0]))
    axes.grid(False)


def parameters(initial: Mapping[str, float], learned: Mapping[str, Any], title: str) -> None:
    """Draw the learned values of each parameter in order of size, and where they started."""
    axes = panels(len(learned), width=5.2, height=3.2)
    for place, (label, values) in zip(axes, learned.items(), strict=True):
        start = initial[label]
        place.bar(np.arange(len(values)), np.sort(values) - start, bottom=start, color=BLUE)
        place.axhline(start, color=RED, linestyle="--", label=f"start: {start:g}")
        place.set(title=label, xlabel="feature, in order of the value", ylabel="value")
        place.legend(loc="upper left")
    axes[0].figure.suptitle(title)


CHANNELS, SAMPLES, POSITIONS = 4, 4, 4
AVERAGED: dict[str, Callable[[int, int, int], bool]] = {  # which cells share one mean
    "batch norm": lambda channel, sample, position: channel == CHANNELS - 1,
    "layer norm\nof a whole image": lambda channel, sample, position: sample == 0,
    "layer norm and RMS norm\nin a transformer": lambda channel, sample, position: (
        sample == 0 and position == POSITIONS - 1
    ),
    "instance norm": lambda channel, sample, position: sample == 0 and channel == CHANNELS - 1,
    "group norm\n(2 groups)": lambda channel, sample, position: sample == 0 and channel >= 2,
}


def cubes(title: str) -> None:
    """Draw samples x channels x positions as a cube for each norm, one averaged set colored."""
    axes = panels(len(AVERAGED), width=2.7, height=3.4)
    for place, (label, averaged) in zip(axes, AVERAGED.items(), strict=True):
        for corners, cell in _visible_faces():
            color = BLUE if averaged(*cell) else PALE
            place.add_patch(Polygon(corners, facecolor=color, edgecolor="white", linewidth=1.2))
        place.set_title(label, fontsize=11)
        place.set(xlim=(-0.7, 6.7), ylim=(-0.9, 6.3), aspect="equal")
        place.axis("off")
    axes[0].text(2, -0.3, "channels", ha="center", va="top")
    axes[0].text(-0.3, 2, "positions", ha="right", va="center", rotation=90)
    axes[0].text(5.4, 0.6, "samples", ha="left", va="center", rotation=40)
    axes[0].figure.suptitle(title)


def _visible_faces() -> list[tuple[list[tuple[float, float]], tuple[int, int, int]]]:
    """Return corners on paper and the cell (channel, sample, position) of each face in sight."""

    def on_paper(x: float, depth: float, height: float) -> tuple[float, float]:
        return x + 0.55 * depth, height + 0.45 * depth

    faces = []
    for a in range(4):
        for b in range(4):
            square = ((a, b), (a + 1, b), (a + 1, b + 1), (a, b + 1))
            faces += [
                ([on_paper(x, 0, h) for x, h in square], (a, 0, b)),  # front
                ([on_paper(CHANNELS, d, h) for d, h in square], (CHANNELS - 1, a, b)),  # right
                ([on_paper(x, d, POSITIONS) for x, d in square], (a, b, POSITIONS - 1)),  # top
            ]
    return faces
