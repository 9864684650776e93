"""Judges and times every cell of a plan."""

import gc
import json
import subprocess
import sys
import warnings
from collections.abc import Sequence

import layernorm
from layernorm.cli.bench.cells import ONE_THREAD_WORDS, PLANS, Cell
from layernorm.cli.bench.judge import Judge
from layernorm.cli.bench.results import COPY, Report, Result, Timing
from layernorm.cli.bench.stored import report_from
from layernorm.cli.bench.timing import REPEATS, Call, Memory, interleave
from layernorm.cli.machine import (
    OtherLoad,
    describe_machine,
    kept_to_processors,
    last_level_cache_bytes,
    usable_processors,
)
from layernorm.cli.problem import Problem
from layernorm.cli.progress import Progress, ignore
from layernorm.cli.providers import (
    PEERS,
    QUICK_PEERS,
    Provider,
    Providers,
    Unsupported,
    find_providers,
    first_line,
)

COPIES = (COPY, "copy by all")

QUICK_REPEATS = 15


def measure(
    *,
    plan: str = "usual",
    peers: Sequence[str] | None = None,
    threads: int | None = None,
    only: str = "",
    repeats: int | None = None,
    front_end: str = "numpy",
    progress: Progress = ignore,
) -> Report:
    """Time a plan.

    Args:
        plan: "quick", "usual" or "full".
        peers: their names; None: all that are installed.
        threads: how many processors to keep to. None: all, and then a part again on one.
        only: words that a cell must have all of, such as "backward float32".
        repeats: samples of each cell, fewer of calls longer than 0.1 s. None: 30, and 15 in the
            quick plan.
        front_end: which of ours is timed, one of `FRONT_ENDS`.
        progress: called before each step.
    Raises: MissingPeersError; ImportError without the front end's framework; ValueError for an
        unknown peer, or if no cell is left.
    """
    cells = [cell for cell in PLANS[plan]() if cell.is_named_by(only)]
    if not cells:
        raise ValueError(f"no cell of the {plan} plan has all the words {only!r}")
    count = threads or usable_processors()
    repeats = repeats or (QUICK_REPEATS if plan == "quick" else REPEATS)
    names = (QUICK_PEERS if plan == "quick" else PEERS) if peers is None else peers
    failures: dict[str, str] = {}
    other_load = OtherLoad()
    with kept_to_processors(count):
        found = find_providers(threads=count, names=names, front_end=front_end)
        results = _measure_cells(cells, found, count, repeats, failures, progress)
    if threads is None and count > 1 and plan != "quick":
        one_thread = [cell for cell in cells if cell.is_named_by(ONE_THREAD_WORDS)]
        if one_thread:
            progress(len(cells), len(cells), "again on one processor, in a process of its own")
            results += _measure_on_one_thread(plan, peers, only, repeats, front_end)
    return Report(
        version=layernorm.__version__,
        machine=describe_machine(),
        results=results,
        versions=found.versions,
        missing=found.missing,
        failures=failures,
        repeats=repeats,
        other_load=other_load.processors(),
    )


def _measure_cells(
    cells: Sequence[Cell],
    found: Providers,
    threads: int,
    repeats: int,
    failures: dict[str, str],
    progress: Progress,
) -> list[Result]:
    memory = Memory(threads, cache_bytes=last_level_cache_bytes())
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for done, cell in enumerate(cells):
            progress(done, len(cells), f"{cell.section}: {cell.label}")
            results += _measure_cell(cell, found, memory, threads, repeats, failures)
            gc.collect()  # the arrays of a cell may fill much of the memory
    memory.close()
    return results


def _measure_cell(
    cell: Cell,
    found: Providers,
    memory: Memory,
    threads: int,
    repeats: int,
    failures: dict[str, str],
) -> list[Result]:
    problem = cell.problem()
    judge = Judge(problem)
    calls: dict[str, Call] = {}
    verdicts: dict[str, tuple[dict[str, float], bool]] = {}
    refused = []
    for provider in (found.ours, *found.peers):
        try:
            call = _call(provider, cell, problem)
            errors = judge.errors(provider.arrays(call()))
        except Unsupported:
            continue
        except Exception as error:
            if provider is found.ours:
                raise
            failures[f"{provider.name}, {cell.section}, {cell.label}"] = first_line(error)
            continue
        is_right = judge.within_bounds(errors)
        if provider is found.ours and not is_right:
            refused.append(Result(cell, threads, provider.name, None, errors, False))
            continue
        calls[provider.name] = call
        verdicts[provider.name] = errors, is_right
    calls |= memory.copies(problem.x.nbytes, fresh=cell.output == "fresh")
    timings = interleave(
        calls, repeats=repeats, evict=memory.evict if cell.cache == "cold" else None
    )
    fastest_copy = min((timings[name] for name in COPIES if name in timings), key=_median)
    return [
        Result(cell, threads, COPY, fastest_copy),
        *refused,
        *(Result(cell, threads, name, timings[name], *verdicts[name]) for name in verdicts),
    ]


def _call(provider: Provider, cell: Cell, problem: Problem) -> Call:
    if cell.direction == "backward":
        return provider.backward(problem)
    return provider.forward(problem, reuse_output=cell.output == "reused")


def _median(timing: Timing) -> float:
    return timing.median


def _measure_on_one_thread(
    plan: str, peers: Sequence[str] | None, only: str, repeats: int, front_end: str
) -> list[Result]:
    """Measure in a process kept to one processor: not all peers have a setting for threads."""
    command = [sys.executable, "-m", "layernorm", "bench", "--json", "--threads", "1"]
    command += ["--plan", plan, "--only", f"{only} {ONE_THREAD_WORDS}", "--repeats", str(repeats)]
    command += ["--front-end", front_end]
    if peers is not None:
        command += ["--peers", ",".join(peers) or "none"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode not in (0, 1):  # 1: a result of ours was wrong, which its entry records
        answer.check_returncode()
    return report_from(json.loads(answer.stdout)).results
