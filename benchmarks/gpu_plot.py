"""Draws the results of `gpu.py`."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpu_problems import DTYPES, Cell


def plot(cells: list[dict[str, Any]], path: Path) -> str:
    """Draw each provider's speed as a fraction of a copy's, by the length of rows, in large x."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    works = ("forward", "backward")
    figure, axes = plt.subplots(len(works), len(DTYPES), figsize=(14, 8), sharey=True)
    for (high, kind), (col, dtype) in itertools.product(enumerate(works), enumerate(DTYPES)):
        for name, points in _lines(cells, kind, dtype).items():
            axes[high][col].semilogx(*zip(*sorted(points), strict=True), label=name, marker=".")
        axes[high][col].set_title(f"{kind} {dtype}, 2^26 elements")
        axes[high][col].set_xlabel("columns")
        axes[high][col].set_ylabel("speed, copy = 1")
        if axes[high][col].lines:
            axes[high][col].legend()
    figure.tight_layout()
    figure.savefig(path)
    return path.name


def _lines(
    cells: Iterable[dict[str, Any]], kind: str, dtype: str
) -> dict[str, list[tuple[int, float]]]:
    lines: dict[str, list[tuple[int, float]]] = {}
    for found in cells:
        cell = Cell.stored(found)
        if (cell.work, cell.dtype) != (kind, dtype) or cell.is_fused or not cell.is_large:
            continue
        for name, each in found["providers"].items():
            if isinstance(each, dict) and "of_copy" in each and name != "copy":
                lines.setdefault(name, []).append((cell.cols, each["of_copy"]))
    return lines
