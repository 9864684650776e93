"""The command `layernorm`: which commands there are, and what they have in common."""

import argparse
import sys
from collections.abc import Sequence

import layernorm
from layernorm.cli.bench import command as bench
from layernorm.cli.check import command as check
from layernorm.cli.demo import command as demo
from layernorm.cli.info import command as info
from layernorm.cli.inspect import command as inspect

COMMANDS = {"info": info, "check": check, "bench": bench, "demo": demo, "inspect": inspect}

USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0; 1 for a broken contract or a wrong result; 2 for wrong arguments or a missing package.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ImportError, ValueError) as error:
        print(f"layernorm: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="layernorm", description="Layer normalization: what runs here, how well, how fast."
    )
    parser.add_argument("--version", action="version", version=layernorm.__version__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, command in COMMANDS.items():
        added = commands.add_parser(name, help=command.HELP, description=command.HELP)
        added.add_argument("--json", action="store_true", help="print JSON instead of tables")
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    return parser
