"""The command `layernorm info`."""

import argparse
from dataclasses import asdict

from layernorm.cli.compact_json import compact_json
from layernorm.cli.console import open_console
from layernorm.cli.info.facts import collect

HELP = "versions, instruction sets, threads, caches, frameworks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: `--json`, which every command has, is enough."""


def run(options: argparse.Namespace) -> int:
    """Print the facts; return the exit code."""
    if options.json:
        facts = asdict(collect())
        print(compact_json({**facts.pop("machine"), **facts}), end="")
        return 0
    console = open_console()
    from layernorm.cli.info.tables import print_facts

    print_facts(collect(), console)
    return 0
