"""Times the launch configurations that rows could have, to choose the rules of `launch_config`.

    python benchmarks/gpu_tune.py [--seconds 240] [--only text] [--results FOLDER]

All are compiled first, on all processors. Then layer norm of a large x runs with each in turns, as
CUDA graphs, and a copy of the useful bytes beside them. The results are written after each cell.
--dry-run lists the configurations.
"""

import argparse
import contextlib
import datetime
import functools
import itertools
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from gpu import compile_ahead
from gpu_cells import RIGHT, graph_of, machine, providers, replay
from gpu_checks import error, words
from gpu_problems import DTYPES, LARGE, Cell, call, make

from layernorm.triton import launch_config

COLS = (1024, 4096, 64, 8192, 256, 16384, 128, 2048, 512)
ROUNDS, CALLS = 5, 20


class Setting(NamedTuple):
    """Rules of `launch_config`."""

    tile_elements: int  # of rows that are shorter
    thread_elements: int
    least_warps: int  # of a program
    warps_with_sums: int  # of a multiprocessor

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        rules = {
            "_FEW_ELEMENTS": self.tile_elements,
            "_elements_of_a_thread": lambda elements, backward: self.thread_elements,
            "_LEAST_WARPS": self.least_warps,
            "_WARPS_WITH_SUMS": self.warps_with_sums,
        }
        launch_config.row_tile.cache_clear()
        try:
            with mock.patch.multiple(launch_config, **rules):
                yield
        finally:
            launch_config.row_tile.cache_clear()


SETTINGS = {
    "forward": [
        Setting(elements, of_thread, least, 16)
        for elements, of_thread, least in (
            *((2048, 16, 4), (1024, 32, 1), (2048, 32, 1), (2048, 64, 1), (512, 16, 1)),
            *((4096, 32, 4), (1024, 8, 4), (2048, 8, 4)),
        )
    ],
    "backward": [
        Setting(elements, of_thread, least, with_sums)
        for elements, of_thread, least in (
            *((2048, 16, 4), (512, 16, 1), (1024, 16, 1), (1024, 32, 1), (4096, 16, 4)),
            (2048, 8, 4),
        )
        for with_sums in (16, 8, 24)
    ],
}


def main() -> None:
    options = _options()
    deadline = time.monotonic() + options.seconds
    sizes = itertools.product(COLS, ("bfloat16", "float32"), SETTINGS)
    cells = [Cell(work, dtype, LARGE // cols, cols) for cols, dtype, work in sizes]
    choices = {cell: distinct(cell) for cell in cells if options.only in cell.name}
    if options.dry_run:
        for cell, launches in choices.items():
            print(cell.name, *(tuple(each) for each in launches.values()))
        return
    # What is compiled depends on the tile alone.
    wanted = {
        (cell, tile): setting
        for cell, launches in choices.items()
        for (tile, _), setting in launches.items()
    }
    jobs = [(cell, setting) for (cell, _), setting in wanted.items()]
    date = datetime.datetime.now(datetime.UTC)
    found: dict[str, Any] = {"date": date.isoformat(timespec="seconds"), "cells": []}
    found["commit"] = os.environ.get("LAYERNORM_COMMIT", "unknown")
    found["compiled"] = compile_ahead(compile_one, jobs, options.seconds / 2)
    found["machine"] = machine()
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"gpu-tune-{date:%Y-%m-%d}.json"
    for at, (cell, launches) in enumerate(choices.items()):
        if time.monotonic() > deadline:
            print(f"no time left for {len(choices) - at} of {len(choices)} cells")
            break
        chosen = launches.get(launched(cell))
        results = measure(cell, list(launches.values()))
        named = [
            {**setting._asdict(), "chosen": setting == chosen, **result}
            for setting, result in results.items()
        ]
        found["cells"].append({**cell._asdict(), "settings": named})
        path.write_text(json.dumps(found, indent=1) + "\n")
        right = {each: result for each, result in results.items() if "of_copy" in result}
        in_order = sorted(right, key=lambda each: -right[each]["of_copy"])
        best = [f"{tuple(each)} {right[each]['of_copy']:.2f}" for each in in_order[:4]]
        now = f"now {right[chosen]['of_copy']:.2f}, " if chosen in right else ""
        left_out = f"; {len(results) - len(right)} failed" if len(right) < len(results) else ""
        print(f"{cell.name}, of a copy: {now}best {', '.join(best)}{left_out}", flush=True)
    print(path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="list the configurations")
    limit = float(os.environ.get("STEP_SECONDS", "240"))
    parser.add_argument("--seconds", type=float, default=limit, help="half of them to compile")
    parser.add_argument("--only", default="", help="cells whose name contains this text")
    parser.add_argument("--results", type=Path, default=Path("build/gpu"), metavar="FOLDER")
    return parser.parse_args()


def launched(cell: Cell) -> tuple[Any, ...] | None:
    """Return what follows from the rules: the tile, and of a backward how many programs share sums.

    None for long rows, which have rules of their own. A GPU with 132 multiprocessors is assumed.
    """
    backward = cell.work == "backward"
    itemsize = DTYPES[cell.dtype].itemsize
    tile = launch_config.row_tile(cell.cols, itemsize, strided=False, backward=backward)
    if tile is None or not (backward and tile.has_sums):
        return tile and (tile, None)
    return tile, launch_config.programs_for_sums(-(-cell.rows // tile.rows), 132, tile)


def distinct(cell: Cell) -> dict[Any, Setting]:
    """Return the settings that give different launches, by what `launched` returns."""
    found: dict[Any, Setting] = {}
    for setting in SETTINGS[cell.work]:
        with setting.applied():
            found.setdefault(launched(cell), setting)
    return {each: setting for each, setting in found.items() if each and each[0].warps <= 32}


def compile_one(cell: Cell, setting: Setting) -> None:
    with setting.applied(), providers(dry_run=False) as norms:
        few = cell._replace(rows=64)
        call(few, norms["layernorm"], make(few, "cuda", seed=0))


def measure(cell: Cell, settings: list[Setting]) -> dict[Setting, dict[str, Any]]:
    """Return with each setting the speed, `of_copy`; or why it cannot run, or its error."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), providers(dry_run=False) as norms:
        given = make(cell, "cuda", seed=0)
        results: dict[Setting, dict[str, Any]] = {}
        graphs: dict[Setting | None, Any] = {}
        for setting in settings:
            try:
                with setting.applied():
                    y = given.forward(norms["layernorm"]) if cell.work == "backward" else None
                    run = functools.partial(call, cell, norms["layernorm"], given, y)
                    off = error(cell, run(), given)
                    if off <= RIGHT[cell.dtype]:
                        graphs[setting] = graph_of([run], CALLS, stream)
                    results[setting] = {"error": off}
            except Exception as problem:
                results[setting] = {"cannot": words(problem)}
        halves = [
            torch.empty(cell.useful_bytes // 2, dtype=torch.uint8, device="cuda") for _ in range(2)
        ]
        graphs[None] = graph_of([functools.partial(halves[0].copy_, halves[1])], CALLS, stream)
        times: dict[Setting | None, list[float]] = {setting: [] for setting in graphs}
        for _ in range(ROUNDS):
            for setting, graph in graphs.items():
                times[setting].append(replay(*graph))
    copy = statistics.median(times.pop(None))
    for setting, taken in times.items():
        results[setting]["of_copy"] = copy / statistics.median(taken)
    return results


if __name__ == "__main__":
    main()
