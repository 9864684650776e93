"""Arguments that several commands take."""

import argparse

from layernorm.cli.providers import FRONT_ENDS


def add_measuring(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the commands that measure us beside peers."""
    parser.add_argument(
        "--peers",
        type=parse_names,
        metavar="NAMES",
        help="comma-separated, or 'none' (default: all installed)",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="(default: all)")
    parser.add_argument(
        "--front-end",
        choices=FRONT_ENDS,
        default="numpy",
        help="which of our front ends to measure (default numpy)",
    )


def positive(text: str) -> int:
    """Parse a number that is at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def parse_names(text: str) -> list[str]:
    """Turn "torch,jax" into names, and "none" into no names."""
    return [name.strip() for name in text.split(",") if name.strip() not in ("", "none")]
