"""`layernorm bench`: forward and backward timed beside every installed peer, and beside a copy."""

import gc
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import layernorm
from layernorm.cli.cells import ONE_THREAD_WORDS, PLANS, Cell
from layernorm.cli.machine import (
    OtherLoad,
    describe_machine,
    kept_to_processors,
    last_level_cache_bytes,
    usable_processors,
)
from layernorm.cli.providers import (
    PEERS,
    Provider,
    Providers,
    Unsupported,
    find_providers,
    parse_names,
)
from layernorm.cli.timing import REPEATS, Call, Memory, Timing, interleave
from layernorm.cli.verify import Judge

if TYPE_CHECKING:
    from rich.console import Console

COPY = "copy"
COPIES = (COPY, "copy by all")

QUICK_REPEATS = 15

QUICK_PEERS = tuple(name for name in PEERS if name != "torch.compile")
"""torch.compile takes seconds for every shape."""


@dataclass(frozen=True)
class Result:
    """One provider in one cell. `timing` is None for a wrong result of ours: it is not timed."""

    cell: Cell
    threads: int
    provider: str
    timing: Timing | None
    errors: dict[str, float] = field(default_factory=dict)
    within_bounds: bool = True

    @property
    def gigabytes_a_second(self) -> float:
        """Useful bytes a second; a copy's are those it reads and writes."""
        assert self.timing is not None
        size = self.cell.useful_bytes
        if self.provider == COPY and self.cell.direction == "backward":
            size = size // 3 * 2
        return size / self.timing.median / 1e9


@dataclass(frozen=True)
class Report:
    """All results, and what they were measured with."""

    results: list[Result]
    versions: dict[str, str]
    missing: dict[str, str]
    failures: dict[str, str]
    repeats: int
    other_load: float | None
    """Processors that other programs kept busy meanwhile."""

    @property
    def is_right(self) -> bool:
        """Whether none of our results was too wrong to be timed."""
        return all(each.timing is not None for each in self.results)

    def as_dict(self) -> dict[str, Any]:
        """Return the whole as what JSON can hold."""
        from layernorm.cli.bench_summary import summarize

        return {
            "command": "bench",
            "version": layernorm.__version__,
            "machine": describe_machine(),
            "versions": self.versions,
            "missing_peers": self.missing,
            "failed_peers": self.failures,
            "repeats": self.repeats,
            "processors_busy_with_other_programs": self.other_load,
            "results": [asdict(each) for each in self.results],
            "summary": [asdict(each) for each in summarize(self.results)],
        }


def measure(
    *,
    plan: str = "usual",
    peers: str | None = None,
    threads: int | None = None,
    only: str = "",
    repeats: int | None = None,
    front_end: str = "numpy",
    console: "Console | None" = None,
) -> Report:
    """Time a plan.

    Args:
        plan: "quick", "usual" or "full".
        peers: names with commas between, "none", or None for all that are installed.
        threads: how many processors to keep to. None: all, and then a part again on one.
        only: words that a cell must have all of, such as "backward float32".
        repeats: samples of each cell, fewer where a call takes more than 0.1 s. None: 30, and
            15 in the quick plan.
        front_end: which of ours is timed, one of `FRONT_ENDS`.
        console: where to show the progress.
    Raises: MissingPeersError; ImportError without the front end's framework;
        ValueError for an unknown peer, or if no cell is left.
    """
    cells = [cell for cell in PLANS[plan]() if cell.is_named_by(only)]
    if not cells:
        raise ValueError(f"no cell of the {plan} plan has all the words {only!r}")
    count = threads or usable_processors()
    repeats = repeats or (QUICK_REPEATS if plan == "quick" else REPEATS)
    names = parse_names(peers, QUICK_PEERS if plan == "quick" else PEERS)
    failures: dict[str, str] = {}
    other_load = OtherLoad()
    with kept_to_processors(count):
        found = find_providers(threads=count, names=names, front_end=front_end)
        results = _measure_cells(cells, found, count, repeats, failures, console)
    if threads is None and count > 1 and plan != "quick":
        one_thread = [cell for cell in cells if cell.is_named_by(ONE_THREAD_WORDS)]
        if one_thread:
            results += _measure_on_one_thread(plan, peers, only, repeats, front_end, console)
    return Report(
        results, found.versions, found.missing, failures, repeats, other_load.processors()
    )


def show(report: Report, console: "Console") -> None:
    """Print the report as tables."""
    from layernorm.cli.bench_tables import print_report

    print_report(report, console)


def plot(report: Report, file: Path) -> None:
    """Draw the report into a PNG file."""
    from layernorm.cli.plots import plot_times

    plot_times(report.results, file)


def _measure_cells(
    cells: Sequence[Cell],
    found: Providers,
    threads: int,
    repeats: int,
    failures: dict[str, str],
    console: "Console | None",
) -> list[Result]:
    memory = Memory(threads, cache_bytes=last_level_cache_bytes())
    results = []
    with _progress(console, len(cells)) as advance, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cell in cells:
            advance(f"{cell.section}: {cell.label}", 0)
            results += _measure_cell(cell, found, memory, threads, repeats, failures)
            gc.collect()  # the arrays of a cell may fill much of the memory
            advance("", 1)
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
            lines = str(error).strip().splitlines() or [""]
            failures[f"{provider.name}, {cell.section}, {cell.label}"] = (
                f"{type(error).__name__}: {lines[0]}"
            )
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


def _call(provider: Provider, cell: Cell, problem: Any) -> Call:
    if cell.direction == "backward":
        return provider.backward(problem)
    return provider.forward(problem, reuse_output=cell.output == "reused")


def _median(timing: Timing) -> float:
    return timing.median


def _measure_on_one_thread(
    plan: str,
    peers: str | None,
    only: str,
    repeats: int,
    front_end: str,
    console: "Console | None",
) -> list[Result]:
    """Measure in a process that may use one processor: not all peers take a number of threads."""
    command = [sys.executable, "-m", "layernorm", "bench", "--json", "--threads", "1"]
    command += ["--plan", plan, "--only", f"{only} {ONE_THREAD_WORDS}", "--repeats", str(repeats)]
    command += ["--front-end", front_end]
    if peers is not None:
        command += ["--peers", peers]
    if console is not None:
        console.print("the float32 part again, in a process that keeps to one processor ...")
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode not in (0, 1):  # 1: a result of ours was wrong, which its entry says
        answer.check_returncode()
    return [_result_from(each) for each in json.loads(answer.stdout)["results"]]


def _result_from(entry: dict[str, Any]) -> Result:
    cell = Cell(**{**entry["cell"], "shape": tuple(entry["cell"]["shape"])})
    timing = None if entry["timing"] is None else Timing(**entry["timing"])
    errors = {part: float(error) for part, error in entry["errors"].items()}
    return Result(cell, entry["threads"], entry["provider"], timing, errors, entry["within_bounds"])


@contextmanager
def _progress(console: "Console | None", total: int) -> Iterator[Any]:
    if console is None:
        yield lambda text, step: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    # Refreshed by hand: a thread that draws would disturb what is measured.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=total)

        def advance(text: str, step: int) -> None:
            progress.update(task, advance=step, description=text or None)
            progress.refresh()

        yield advance
