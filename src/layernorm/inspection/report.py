"""The report that `inspect` returns."""

from __future__ import annotations

from pathlib import Path

from layernorm.inspection import page, tables
from layernorm.inspection.findings import Findings


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
