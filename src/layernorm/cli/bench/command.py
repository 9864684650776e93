"""The command `layernorm bench`."""

import argparse
from pathlib import Path

from layernorm.cli.arguments import add_measuring, positive
from layernorm.cli.bench.cells import PLANS
from layernorm.cli.bench.measure import measure
from layernorm.cli.bench.plot import plot_times
from layernorm.cli.bench.results import Report
from layernorm.cli.bench.stored import as_dict
from layernorm.cli.compact_json import compact_json
from layernorm.cli.console import open_console, progress_bar
from layernorm.cli.progress import Progress

HELP = "time forward and backward beside every installed peer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` takes."""
    add_plan(parser, default="usual")
    parser.add_argument(
        "--quick", action="store_const", dest="plan", const="quick", help="--plan quick: seconds"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw the times")


def add_plan(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Add what `measure_as_told` takes."""
    add_measuring(parser)
    parser.add_argument(
        "--plan", choices=tuple(PLANS), default=default,
        help="quick: seconds; usual: minutes; full: an hour (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--only",
        default="",
        metavar="WORDS",
        help="cells with all these words: 'backward rms_norm'",
    )
    parser.add_argument(
        "--repeats", type=positive, metavar="N", help="timed samples (default 30; quick: 15)"
    )


def measure_as_told(options: argparse.Namespace, progress: Progress) -> Report:
    """Measure what the arguments of `add_plan` select."""
    return measure(
        plan=options.plan,
        peers=options.peers,
        threads=options.threads,
        only=options.only,
        repeats=options.repeats,
        front_end=options.front_end,
        progress=progress,
    )


def run(options: argparse.Namespace) -> int:
    """Measure, print and draw; return the exit code."""
    console = None if options.json else open_console()
    with progress_bar(console) as progress:
        report = measure_as_told(options, progress)
    if console is None:
        print(compact_json(as_dict(report)), end="")
    else:
        from layernorm.cli.bench.tables import print_report

        print_report(report, console)
    if options.plot is not None:
        plot_times(report.results, options.plot)
        if console is not None:
            console.print(f"drawn in {options.plot}")
    return 0 if report.is_right else 1
