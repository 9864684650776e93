"""The command `layernorm check`."""

import argparse

from layernorm.cli.arguments import add_measuring
from layernorm.cli.check.measure import measure
from layernorm.cli.check.stored import as_dict
from layernorm.cli.compact_json import compact_json
from layernorm.cli.console import open_console, progress_bar

HELP = "measure the accuracy contract; exit code 1 if it is broken"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` takes."""
    add_measuring(parser)
    parser.add_argument("--quick", action="store_true", help="smaller arrays, in seconds")


def run(options: argparse.Namespace) -> int:
    """Measure and print; return the exit code."""
    console = None if options.json else open_console()
    with progress_bar(console) as progress:
        report = measure(
            quick=options.quick,
            peers=options.peers,
            threads=options.threads,
            front_end=options.front_end,
            progress=progress,
        )
    if console is None:
        print(compact_json(as_dict(report)), end="")
    else:
        from layernorm.cli.check.tables import print_report

        print_report(report, console)
    return 0 if report.holds else 1
