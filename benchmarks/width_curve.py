"""Time layernorm.numpy at every width from 1 to 1024, and draw docs/images/width_curve.png.

    python benchmarks/width_curve.py [--step 32] [--widths 63,64,65] [--passes 5] [--draw]
        [--results FOLDER] [--images FOLDER]

Nanoseconds an element on one thread: forward with `out=`, and backward, of layer norm and RMS norm
in float32 and bfloat16. There are as many rows as make x 256 KiB, so that all fits the cache. Each
pass measures the widths in another order; the result is the median of the passes. A copy of x is
timed beside them. Takes minutes. The results in benchmarks/results and the picture are replaced; to
try it, add `--step 64 --results build/bench --images build/bench`.
"""

import argparse
import datetime
import itertools
import json
import random
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from figures import GREEN, GREY, INK
from run import ROOT, commit

import layernorm
from layernorm.cli.bench.cells import KINDS
from layernorm.cli.bench.timing import Call, interleave
from layernorm.cli.compact_json import compact_json
from layernorm.cli.console import open_console, progress_bar
from layernorm.cli.machine import OtherLoad, describe_machine, kept_to_processors
from layernorm.cli.pictures import open_pyplot, save
from layernorm.cli.problem import make_problem, number_type
from layernorm.cli.progress import Progress, ignore
from layernorm.cli.providers.ours import Ours

WIDTHS = range(1, 1025)
X_BYTES = 256 * 2**10
DIRECTIONS, TYPES = ("forward", "backward"), ("float32", "bfloat16")
LINES = {"layer_norm": ("layer norm", GREEN), "rms_norm": ("RMS norm", "#e4572e")}
COPIES = {"forward": 1.0, "backward": 1.5}
"""Backward moves three arrays, and a copy two."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", metavar="N,...", help="default: 1 to 1024")
    parser.add_argument("--step", type=int, default=1, metavar="N", help="take every Nth width")
    parser.add_argument("--passes", type=int, default=5, metavar="N")
    parser.add_argument("--draw", action="store_true", help="only draw the stored results")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks/results", metavar="FOLDER"
    )
    parser.add_argument("--images", type=Path, default=ROOT / "docs/images", metavar="FOLDER")
    options = parser.parse_args()
    results = options.results / "width_curve.json"
    picture = options.images / "width_curve.png"
    if not options.draw:
        given = [int(each) for each in options.widths.split(",")] if options.widths else WIDTHS
        with progress_bar(open_console()) as progress:
            found = measure(given[:: options.step], passes=options.passes, progress=progress)
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(compact_json(found))
        print(f"written to {results}")
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(json.loads(results.read_text()), picture)
    print(f"drawn in {picture}")


def measure(widths: Sequence[int], *, passes: int, progress: Progress = ignore) -> dict[str, Any]:
    """Return the conditions, and for each line of the picture the median of each width."""
    samples: dict[str, dict[int, list[float]]] = {}
    shuffled = random.Random(0)
    other_load = OtherLoad()
    with kept_to_processors(1):
        ours = Ours(threads=1)
        order = [cols for _ in range(passes) for cols in shuffled.sample(widths, len(widths))]
        for done, cols in enumerate(order):
            progress(done, len(order), f"{cols} columns")
            for line, nanoseconds in time_width(ours, cols).items():
                samples.setdefault(line, {}).setdefault(cols, []).append(nanoseconds)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "version": layernorm.__version__,
        "machine": describe_machine(),
        "processors_busy_with_other_programs": other_load.processors(),
        "passes": passes,
        "x_bytes": X_BYTES,
        "widths": list(widths),
        "nanoseconds_an_element": [
            {"line": line, "medians": [median(taken[cols]) for cols in widths]}
            for line, taken in samples.items()
        ],
    }


def time_width(ours: Ours, cols: int) -> dict[str, float]:
    """Return nanoseconds an element: "forward float32 layer_norm", ..., "copy float32"."""
    times = {}
    for type_name in TYPES:
        rows = X_BYTES // (cols * number_type(type_name).itemsize)
        timings = interleave(calls(ours, (rows, cols), type_name), repeats=1)
        for name, timing in timings.items():
            times[name] = 1e9 * timing.median / (rows * cols)
    return times


def calls(ours: Ours, shape: tuple[int, int], type_name: str) -> dict[str, Call]:
    found: dict[str, Call] = {}
    for kind in KINDS:
        problem = make_problem(shape, type_name, kind=kind, mean=0.5)
        found[f"forward {type_name} {kind}"] = ours.forward(problem, reuse_output=True)
        found[f"backward {type_name} {kind}"] = ours.backward(problem)
    found[f"copy {type_name}"] = partial(np.copyto, np.empty_like(problem.x), problem.x)
    return found


def median(samples: list[float]) -> float:
    """Return the median, of four digits."""
    return float(f"{statistics.median(samples):.4g}")


def draw(found: dict[str, Any], file: Path) -> None:
    """Draw a panel for each direction and type: a line for each norm, and one for a copy."""
    medians = {each["line"]: each["medians"] for each in found["nanoseconds_an_element"]}
    pyplot = open_pyplot()
    pyplot.rcParams |= {"font.size": 10.5, "text.color": INK, "axes.labelcolor": INK}
    figure, grid = pyplot.subplots(2, 2, figsize=(9, 6.4), sharex=True, sharey=True)
    panels = itertools.product(DIRECTIONS, TYPES)
    for axes, (direction, type_name) in zip(grid.flat, panels, strict=True):
        for kind, (label, color) in LINES.items():
            line = medians[f"{direction} {type_name} {kind}"]
            axes.plot(found["widths"], line, color=color, linewidth=1, label=label)
        copy = COPIES[direction] * statistics.median(medians[f"copy {type_name}"])
        axes.axhline(copy, color=GREY, linestyle="--", label="a copy of the same bytes")
        axes.set_title(f"{direction}, {type_name}", loc="left", fontweight="bold", fontsize=11)
        axes.set(xscale="log", yscale="log")
        ticks = [2**power for power in range(11)]
        axes.set_xticks(ticks, map(str, ticks), fontsize=9)
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(color="#eeeeee")
        axes.set_axisbelow(True)
    for axes in grid[:, 0]:
        axes.set_ylabel("ns an element")
    for axes in grid[1]:
        axes.set_xlabel("columns")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper left", ncols=3, frameon=False)
    machine, kib = found["machine"], found["x_bytes"] // 2**10
    figure.text(
        0.99, 0.975, f"{machine['processor']}, {machine['isa']}, 1 thread, x of {kib} KiB",
        ha="right", va="center", fontsize=9, color="#666666",
    )  # fmt: skip
    save(figure, file, top=0.95)


if __name__ == "__main__":
    main()
