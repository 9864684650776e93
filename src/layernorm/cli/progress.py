"""How far a measurement has come, told to whoever shows it."""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with the steps done, the steps in all, and what is being done now."""


def ignore(done: int, total: int, text: str) -> None:
    """Show nothing."""
