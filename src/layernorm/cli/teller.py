"""Prints what a demo tells: headings, lines and tables on a console, or nothing."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


class Teller:
    """Prints to a console, or nowhere."""

    def __init__(self, console: "Console | None") -> None:
        self._console = console

    def title(self, text: str) -> None:
        """Print a heading."""
        if self._console is not None:
            self._console.print()
            self._console.rule(f"[bold]{text}", align="left")

    def line(self, text: str, *, markup: bool = True) -> None:
        """Print a line."""
        if self._console is not None:
            self._console.print(text, markup=markup)

    def code(self, text: str) -> None:
        """Print a line of an interactive session."""
        self.line(f">>> {text}", markup=False)

    def table(self, headings: list[str], rows: list[list[str]]) -> None:
        """Print a table, its first column to the left and the others to the right."""
        if self._console is None:
            return
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE)
        for place, heading in enumerate(headings):
            table.add_column(heading, justify="right" if place else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        self._console.print(table)
