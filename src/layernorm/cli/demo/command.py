"""The command `layernorm demo`."""

import argparse
import contextlib
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layernorm.cli.arguments import parse_names, positive
from layernorm.cli.bench import stored as bench_results
from layernorm.cli.bench.measure import measure as measure_times
from layernorm.cli.check import stored as check_results
from layernorm.cli.check.measure import measure as measure_errors
from layernorm.cli.compact_json import compact_json
from layernorm.cli.console import open_console, progress_bar
from layernorm.cli.demo import digits, tables
from layernorm.cli.demo.networks import FRAMEWORKS, RECIPES, check_names, missing_package
from layernorm.cli.demo.plot import draw_training
from layernorm.cli.demo.training import GOAL, Run, train

if TYPE_CHECKING:
    from rich.console import Console

HELP = "train a small network on handwritten digits, draw it, show snippets, check, time"

EPOCHS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` takes."""
    parser.add_argument(
        "--plot", type=Path, default=Path("demo.png"), metavar="FILE.png",
        help="where the training is drawn (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--epochs", type=positive, metavar="N", help="of each training run")
    parser.add_argument("--train-only", action="store_true", help="skip the check and the timing")
    parser.add_argument(
        "--full", action="store_true", help="print the full tables of check and bench"
    )
    parser.add_argument(
        "--frameworks",
        type=parse_names,
        metavar="NAMES",
        help="frameworks in which the training is repeated: comma-separated, or 'none' "
        "(default: all that are installed and have a front end)",
    )


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit code.

    1 if the contract is broken, if a layer norm's bits differ from those of layernorm.numpy, if a
    timed result is wrong, or if a network trained for all epochs misses the goal.

    Raises: ValueError for an unknown framework, ImportError for one that is not installed.
    """
    start = time.perf_counter()
    # Keeps TensorFlow's messages out of ours: those from C++, and those from Python.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    console = open_console(quiet=options.json)
    frameworks, absent = _choose_frameworks(options.frameworks)
    runs = _train(frameworks, absent, options.epochs or EPOCHS, options.plot, console)
    if not options.json:
        _show_snippets(console)
    found: dict[str, Any] = {
        "command": "demo",
        "picture": str(options.plot),
        "training": [each.as_dict() for each in runs],
    }
    reached = options.epochs is not None or all(each.test_accuracy[-1] > GOAL for each in runs)
    same_bits = not any(each.other_bits for each in runs)
    holds = True
    if not options.train_only:
        holds = _check(found, options.full, console)
        holds = _bench(found, options.full, console) and holds
    found["seconds"] = time.perf_counter() - start
    if options.json:
        print(compact_json(found), end="")
    console.print(f"\ndone in {found['seconds']:.0f} s")
    if not same_bits:
        console.print("[red]a layer norm's bits differ from those of layernorm.numpy[/]")
    if not reached:
        console.print(f"[red]test accuracy is not above {GOAL:.0%}[/]")
    return 0 if holds and same_bits and reached else 1


def _choose_frameworks(names: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Return the frameworks to train in, and of those missing the package that they lack."""
    if names is not None:
        check_names(names)
        return list(names), {}
    lacking = {name: missing_package(name) for name in FRAMEWORKS}
    absent = {name: package for name, package in lacking.items() if package is not None}
    return [name for name in FRAMEWORKS if name not in absent], absent


def _train(
    frameworks: Sequence[str],
    absent: dict[str, str],
    epochs: int,
    plot_file: Path,
    console: "Console",
) -> list[Run]:
    tables.print_title("training on handwritten digits", console)
    data = digits.load_digits()
    tables.print_data(data, console)
    runs = []
    with _one_thread_for_products():
        for recipe in RECIPES:
            console.print(f"\n[bold]NumPy, {recipe.title}[/], lr {recipe.lr}")
            each_epoch = partial(tables.print_epoch, console=console)
            runs.append(train("numpy", recipe, data, epochs, each_epoch=each_epoch))
            tables.print_parameters(runs[-1], console)
    runs += [train(name, recipe, data, epochs) for name in frameworks for recipe in RECIPES]
    tables.print_comparison(runs, console)
    tables.print_absent(absent, console)
    draw_training(runs, data, plot_file)
    console.print(f"the training is drawn in {plot_file.resolve()}", soft_wrap=True)
    return runs


@contextlib.contextmanager
def _one_thread_for_products() -> Iterator[None]:
    """Keep NumPy's matrix products, which are small here, to one thread: more cost time."""
    import threadpoolctl  # comes with scikit-learn

    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield


def _show_snippets(console: "Console") -> None:
    tables.print_title("first steps", console)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the frameworks' own
        tables.print_snippets(console)


def _check(found: dict[str, Any], full: bool, console: "Console") -> bool:
    from layernorm.cli.check.tables import print_report, print_summary

    tables.print_title("check: is it right on this machine?", console)
    with progress_bar(console) as progress:
        report = measure_errors(quick=True, progress=progress)
    (print_report if full else print_summary)(report, console)
    found["check"] = check_results.as_dict(report)
    return report.holds


def _bench(found: dict[str, Any], full: bool, console: "Console") -> bool:
    from layernorm.cli.bench.tables import print_report, print_summary

    tables.print_title("bench: is it fast on this machine?", console)
    with progress_bar(console) as progress:
        report = measure_times(plan="quick", progress=progress)
    (print_report if full else print_summary)(report, console)
    found["bench"] = bench_results.as_dict(report)
    return report.is_right
