"""The GPU benchmark: check every provider against float64, and time it beside a copy.

    python benchmarks/gpu.py [--seconds 480] [--only text] [--results FOLDER]
    python benchmarks/gpu.py --dry-run

`gpu_first_run.sh` beside it also tests. A part that fails is reported, and the next one begins. The
report is written after each part and each cell. Code that runs on the GPU has a process of its own,
which is started again after a crash and ended if it does not answer in two minutes. The most
important cells come first; those that the minutes do not suffice for are omitted.

Providers: ours, PyTorch's own (ATen), torch.compile, and Liger and quack where they are installed;
of long rows also `gpu_loop.py`, one program a row, which would be simpler than our blocks.
Two timings: `device`, a CUDA graph of calls on inputs rotated through three times the second-level
cache; `eager`, wall time a call. Medians over rounds in which the providers take turns. Useful
bytes: 2 rows cols itemsize forward, 3 backward; with a residual 4 each, with a gate 3 and 5. A
provider whose result is wrong is timed and marked. --dry-run does the checks on small problems in
Triton's interpreter and times nothing.
Where there is no git, LAYERNORM_COMMIT says what was measured.
"""

import argparse
import concurrent.futures
import datetime
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gpu_cells import machine, warm_up, work
from gpu_goals import as_table
from gpu_plot import plot
from gpu_problems import DTYPES, LARGE, Cell

HERE = Path(__file__).parent

# The most important first, in each of these, but those that take other providers long.
FIRST_COLS = (64, 8192, 256, 16384, 65536, 1024, 4096, 2048)
FURTHER_COLS = (512, 128, 32768, 769, 5120, 1023, 12288)
FEW_ROWS = (1, 1024, 64, 8)
WITH_COMPILER = (1024, 4096)
PATIENCE = 120  # seconds that a cell may take
ENDED = "its process ended"
SPAWN = multiprocessing.get_context("spawn")


class Report:
    """The results so far, always on disk."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.found: dict[str, Any] = {"seconds": {}, "failed": {}, "checks": [], "cells": []}

    def write(self) -> None:
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps(self.found, indent=1, default=str) + "\n")
        beside.replace(self.path)

    def part(self, name: str, function: Callable[..., Any], *arguments: Any) -> None:
        """Run one part, and report its result or its failure."""
        begin = time.monotonic()
        print(f"== {name}", flush=True)
        try:
            result = function(*arguments)
            if result is not None:
                self.found[name] = result
        except Exception as problem:
            self.found["failed"][name] = traceback.format_exc()[-4000:]
            print(f"failed: {type(problem).__name__}: {str(problem)[:500]}", flush=True)
        self.found["seconds"][name] = round(time.monotonic() - begin, 1)
        self.write()


def main() -> None:
    options = _options()
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    deadline = time.monotonic() + options.seconds
    now = datetime.datetime.now(datetime.UTC)
    name = "gpu-dry-run" if options.dry_run else f"gpu-{now:%Y-%m-%d}"
    report = Report(options.results / f"{name}.json")
    report.found |= {"date": now.isoformat(timespec="seconds"), "options": vars(options)}
    report.found["commit"] = os.environ.get("LAYERNORM_COMMIT") or _commit()
    cells = [cell for cell in cells_in_order(dry_run=options.dry_run) if options.only in cell.name]
    report.part("versions", _versions)
    if not options.dry_run:
        report.part("machine", _alone, machine)
        if "machine" in report.found["failed"]:
            return
        ours = dict.fromkeys(cell.plain for cell in cells if cell.work != "check")
        jobs = [(cell,) for cell in ours]
        report.part("compiled", compile_ahead, warm_up, jobs, min(100.0, options.seconds / 3))
    report.part("left out", measure, cells, report, deadline, options)
    if not options.dry_run:
        print(as_table(report.found["cells"]))
        report.part("plot", plot, report.found["cells"], report.path.with_suffix(".png"))
    print(report.path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="check, on the CPU; time nothing")
    limit = float(os.environ.get("STEP_SECONDS", "480"))
    parser.add_argument("--seconds", type=float, default=limit, help="for all parts together")
    parser.add_argument("--only", default="", help="cells whose name contains this text")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each provider")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    return parser.parse_args()


def with_each(cells: list[Cell]) -> list[Cell]:
    """Return these cells with a residual, and with a gate."""
    return [cell._replace(**{each: True}) for each in ("residual", "gate") for cell in cells]


def cells_in_order(*, dry_run: bool) -> list[Cell]:
    """List the cells, the most important ones first."""
    works = ("forward", "backward", "both")
    if dry_run:
        sizes = itertools.product(("check", *works), DTYPES, (1, 5), (64, 769))
        cells = [Cell(*cell) for cell in sizes if cell[0] != "check" or cell[2] == 5]
        cells += [Cell(work, "float32", 2, 16385) for work in works]
        fused = [Cell(*cell) for cell in itertools.product(works[:2], DTYPES, (5,), (64, 769))]
        return cells + with_each(fused)
    # a check for each kind of tile
    tiles = itertools.product((1024, 769, 64, 6000, 20000, 16384), DTYPES)
    sizes = itertools.product((1024, 4096), (1024, 4096), ("float32", "bfloat16"))
    few_long_rows = itertools.product((1, 16, 64), ("float32", "bfloat16"), works[:2])
    few = itertools.product(works, ("float32", "bfloat16"), FEW_ROWS, FIRST_COLS)
    cells = [
        *large(FIRST_COLS, "float32", "bfloat16"),
        *(Cell("both", dtype, rows, cols) for rows, cols, dtype in sizes),
        *large(FURTHER_COLS, "float32", "bfloat16"),
        *(Cell(work, dtype, rows, 65536) for rows, dtype, work in few_long_rows),
        *with_each(large((1024, 4096, 64), "float32", "bfloat16")),
        *(Cell(*each) for each in few),
        *(Cell("check", dtype, 37, cols) for cols, dtype in tiles),
        *large(FIRST_COLS + FURTHER_COLS, "float16"),
    ]
    return list(dict.fromkeys(cells))


def large(cols: tuple[int, ...], *dtypes: str) -> list[Cell]:
    """List cells with several times more elements than a cache holds."""
    sizes = itertools.product(cols, dtypes, ("forward", "backward"))
    return [
        Cell(work, dtype, LARGE // each, each, each in WITH_COMPILER and dtype != "float16")
        for each, dtype, work in sizes
    ]


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function in a process of its own, because this one must not use the GPU."""
    pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=SPAWN)
    try:
        return pool.submit(function, *arguments).result(timeout=PATIENCE)
    finally:
        _end(pool)


def compile_ahead(function: Callable[..., None], jobs: list[tuple[Any, ...]], limit: float) -> str:
    """Run jobs on all processors that compile kernels, which those that time then find cached."""
    processes = max(1, min(14, (os.cpu_count() or 2) - 2))
    pool = concurrent.futures.ProcessPoolExecutor(processes, mp_context=SPAWN)
    try:
        made = [pool.submit(function, *job) for job in jobs]
        done, late = concurrent.futures.wait(made, timeout=limit)
        problems = [str(each.exception()) for each in done if each.exception() is not None]
    finally:
        _end(pool)
    said = f"{len(done) - len(problems)} jobs, {len(late)} not in time, failed: {problems[:3]}"
    print(said, flush=True)
    return said


def _end(pool: concurrent.futures.ProcessPoolExecutor) -> None:
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()


def measure(
    cells: list[Cell], report: Report, deadline: float, options: argparse.Namespace
) -> list[str]:
    """Have a process measure the cells, and after a crash another one; return those left out."""
    left = list(cells)
    barren = 0  # processes in a row that ended without an answer
    while left and time.monotonic() < deadline and barren < 3:
        answers, theirs = SPAWN.Pipe(duplex=False)
        arguments = (theirs, left, options.dry_run, options.rounds)
        process = SPAWN.Process(target=work, args=arguments)
        process.start()
        theirs.close()
        count = len(left)
        try:
            reason = _receive(answers, left, report, deadline)
            if reason == ENDED:
                process.join(timeout=10)
        finally:
            process.kill()
        process.join()
        barren = barren + 1 if len(left) == count else 0
        if left and process.exitcode != 0 and time.monotonic() < deadline:
            _keep(report, left.pop(0), {"cannot": f"{reason}, exit code {process.exitcode}"})
    return [cell.name for cell in left]


def _receive(answers: Connection, left: list[Cell], report: Report, deadline: float) -> str:
    """Take a process's answers, remove their cells from `left`, and return why it ended."""
    while left:
        patience = max(0.0, min(PATIENCE, deadline - time.monotonic()))
        if not answers.poll(patience):
            return f"no answer in {patience:.0f} seconds"
        try:
            cell, found = answers.recv()
        except EOFError:
            break
        if cell is None:
            raise RuntimeError(found)
        left.remove(cell)
        _keep(report, cell, found)
    return ENDED


def _keep(report: Report, cell: Cell, found: dict[str, Any]) -> None:
    if cell.work == "check":
        report.found["checks"].append({**cell._asdict(), "found": found})
        print(cell.name, found, flush=True)
    else:
        report.found["cells"].append({**cell._asdict(), "providers": found})
        words = {name: _short(each) for name, each in found.items()}
        print(cell.name, words, flush=True)
    report.write()


def _short(found: Any) -> str:
    if not isinstance(found, dict):
        return str(found)[:300]
    if "cannot" in found:
        return found["cannot"][:100]
    mark = " wrong" if found.get("wrong") else ""
    times = "".join(f" {key} {found[key]:.1f} us" for key in ("device", "eager") if key in found)
    part = f" {found['of_copy']:.2f} of copy" if "of_copy" in found else ""
    return f"{found.get('error', 0):.2g} ulp{mark}{times}{part}"


def _commit() -> str:
    command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _versions() -> dict[str, str]:
    names = ("layernorm", "torch", "triton", "numpy", "liger-kernel", "quack-kernels")
    found = {"python": sys.version.split()[0]} | {name: _version(name) for name in names}
    print(", ".join(f"{name} {version}" for name, version in found.items()), flush=True)
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


if __name__ == "__main__":
    main()
