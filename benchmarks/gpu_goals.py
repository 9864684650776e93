"""Compares what `gpu.py` has measured with the goals.

python benchmarks/gpu_goals.py benchmarks/results/gpu-DATE.json
"""

import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

from gpu_problems import DTYPES, Cell


class Goal(NamedTuple):
    """The least speed of cells with so much work."""

    name: str
    work: str
    cols: tuple[int, int]  # from, to
    of_copy: float | None = None  # on the device; 1: that of a copy of the useful bytes
    of_aten: float | None = None  # 1: PyTorch's own; on the device, of `both` eager

    def is_for(self, cell: Cell) -> bool:
        if cell.work != self.work or cell.is_fused:
            return False
        has_rows = cell.rows >= 1024 if cell.work == "both" else cell.is_large
        return has_rows and self.cols[0] <= cell.cols <= self.cols[1]


GOALS = [
    Goal("forward, 1K to 16K columns", "forward", (1000, 16384), of_copy=0.95),
    Goal("forward, 64 to 512 columns", "forward", (64, 512), of_copy=0.85),
    Goal("forward, 32K and 64K columns", "forward", (32768, 65536), of_copy=0.85),
    Goal("backward, up to 8K columns", "backward", (64, 8192), of_copy=0.88, of_aten=1.5),
    Goal("backward, 16K to 64K columns", "backward", (16384, 65536), of_copy=0.75),
    Goal("both, eager, 1K to 4K rows and columns", "both", (1024, 4096), of_aten=1.0),
]


def as_table(found: list[dict[str, Any]]) -> str:
    """Return Markdown: for each goal and type the worst and the median cell.

    "failed": in how many cells ours is wrong, or has no time; these do not count on the right.
    """
    lines = ["| work | type | cells | failed | of a copy: worst, median | of ATen: worst, median |"]
    lines.append("|---|---|--:|--:|---|---|")
    for goal, dtype in itertools.product(GOALS, DTYPES):
        cells = [(Cell.stored(each), each["providers"]) for each in found]
        those = [its for cell, its in cells if cell.dtype == dtype and goal.is_for(cell)]
        if not those:
            continue
        kind = "eager" if goal.work == "both" else "device"
        good = [its for its in those if _is_good(its.get("layernorm", {}), kind)]
        columns = [str(len(those)), str(len(those) - len(good))]
        columns.append(_words(_ratios(good, "copy", kind), goal.of_copy))
        columns.append(_words(_ratios(good, "aten", kind), goal.of_aten))
        lines.append(f"| {goal.name} | {dtype} | {' | '.join(columns)} |")
    return "\n".join(lines)


def _is_good(ours: dict[str, Any], kind: str) -> bool:
    return kind in ours and not ours.get("wrong")


def _ratios(cells: list[dict[str, Any]], other: str, kind: str) -> list[float]:
    """Return how many times as fast as the other provider ours is, where that has a time."""
    theirs = [each.get(other, {}).get(kind) for each in cells]
    pairs = zip(cells, theirs, strict=True)
    return [time / each["layernorm"][kind] for each, time in pairs if time]


def _words(ratios: list[float], goal: float | None) -> str:
    if not ratios:
        return "not measured"
    aim = "" if goal is None else f" (goal {goal:.2f})"
    return f"{min(ratios):.2f}, {statistics.median(ratios):.2f}{aim}"


if __name__ == "__main__":
    print(as_table(json.loads(Path(sys.argv[1]).read_text())["cells"]))
