"""The command `layernorm`: info, check, bench, demo."""

from layernorm.cli.command import main

__all__ = ["main"]
