"""The command `layernorm`: info, check, bench, demo, inspect."""

from layernorm.cli.command import main

__all__ = ["main"]
