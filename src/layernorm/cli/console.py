"""The rich console that tables and progress bars go to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from layernorm.cli.progress import Progress, ignore

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def open_console(*, quiet: bool = False) -> "Console":
    """Return the console that tables go to; with `quiet`, it prints nothing.

    Raises: ImportError where rich is not installed, with the command that installs it.
    """
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        hint = "" if quiet else ", or pass --json"
        raise ImportError(
            "tables are printed with rich, which is not installed: "
            f"pip install 'layernorm[demo]'{hint}"
        ) from None
    return Console(highlight=False, quiet=quiet)


@contextmanager
def progress_bar(console: "Console | None") -> Iterator[Progress]:
    """Show a progress bar while measuring; show nothing without a console."""
    if console is None or console.quiet:
        yield ignore
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    # Refreshed by hand: a thread that draws would disturb what is measured.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("")

        def show(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text, refresh=True)

        yield show


def make_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
    """Make a table whose first column is aligned to the left and the others to the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
