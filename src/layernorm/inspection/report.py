"""The report that `inspect` returns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from layernorm.inspection import page, tables
from layernorm.inspection.findings import Findings, Norm

NOTHING_TO_CONVERT = "no norm is left to convert, so nothing was compared by time"


class Report(Findings):
    """What `inspect` found: print it, save it as a page, or read its attributes.

    `dataclasses.asdict` makes it a dictionary. The attributes are those of `Findings`, and
    `norms` is a list of `Norm`.
    """

    def __str__(self) -> str:
        return tables.text(self)

    def save_html(self, file: str | Path) -> None:
        """Write one HTML page with tables and plots, which needs no other file.

        Raises: ImportError where matplotlib is not installed, with the command that installs it.
        """
        Path(file).write_text(page.html(self), encoding="utf-8")


def model_raised(model: object, norms: Iterable[Norm], error: Exception) -> str:
    """Return the message for a model that raises."""
    calls = sum(each.calls for each in norms)
    return (
        f"{type(model).__name__} raised {type(error).__name__} on these inputs, after {calls} "
        f"calls of norms: {error}"
    )


def dy_is_random(error: Exception) -> str:
    """Return the note for a model whose backward raises."""
    return f"dy is random, because the model's backward raised {type(error).__name__}: {error}"


def not_measured(name: str, error: Exception) -> str:
    """Return the note for a norm whose call cannot be made again."""
    return f"{name} was not measured: its call, made again, raised {type(error).__name__}: {error}"


def share_of_all(norms: Iterable[Norm]) -> float | None:
    """Return the sum of the shares; None if there are none."""
    shares = [each.share for each in norms if each.share is not None]
    return sum(shares) if shares else None
