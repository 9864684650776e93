"""Executes the notebook, and gives its outputs to its translation."""

import re
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

FOLDER = Path(__file__).parent
LESSON = FOLDER / "layer_norm.ipynb"
TRANSLATION = FOLDER / "layer_norm.zh.ipynb"


def read(file: Path) -> NotebookNode:
    """Return the notebook in a file."""
    return nbformat.read(file, as_version=4)


def execute(notebook: NotebookNode, report: Callable[[str], None] = print) -> NotebookNode:
    """Return the notebook with the outputs of its cells; report the time of each section.

    Raises: nbclient's CellExecutionError, with the cell and its traceback, where a cell fails.
    """
    executed = deepcopy(notebook)
    title, seconds = "", 0.0
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(executed, timeout=600, config=_connection(folder))
        client.resources["metadata"] = {"path": str(FOLDER)}  # where `import pictures` looks
        with client.setup_kernel():
            for index, cell in enumerate(executed.cells):
                heading = re.match(r"##? (.+)", cell.source)
                if cell.cell_type == "markdown" and heading:
                    _report_time(seconds, title, report)
                    title, seconds = heading[1], 0.0
                since = time.perf_counter()
                client.execute_cell(cell, index)
                seconds += time.perf_counter() - since
    _report_time(seconds, title, report)
    return executed


def code_cells(notebook: NotebookNode) -> dict[str, str]:
    """Return the source of each code cell, by its id and in order."""
    return {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}


def check_code(found: dict[str, str], expected: dict[str, str]) -> None:
    """Raise ValueError where the code cells of the translation are not those of the lesson."""
    if list(found) != list(expected):
        different = ", ".join(sorted(found.keys() ^ expected.keys())) or "in another order"
        raise ValueError(
            f"the code cells of {TRANSLATION.name} are not those of {LESSON.name}: {different}; "
            "copy them from there, with their ids"
        )
    changed = [name for name, source in expected.items() if found[name] != source]
    if changed:
        raise ValueError(
            f"in {TRANSLATION.name} the code of {', '.join(changed)} is not that of {LESSON.name}: "
            "copy it from there, comments included"
        )


def with_outputs_of(executed: NotebookNode, translation: NotebookNode) -> NotebookNode:
    """Return the translation with the outputs of the executed lesson, cell by cell.

    Raises: ValueError where the two do not have the same code cells.
    """
    check_code(code_cells(translation), code_cells(executed))
    filled = deepcopy(translation)
    sources = {cell.id: cell for cell in executed.cells}
    for cell in filled.cells:
        if cell.cell_type == "code":
            cell.outputs = sources[cell.id].outputs
            cell.execution_count = sources[cell.id].execution_count
    return filled


def run(output: Path, report: Callable[[str], None] = print) -> None:
    """Execute the lesson, and write it and its translation to a folder."""
    lesson, translation = read(LESSON), read(TRANSLATION)
    check_code(code_cells(translation), code_cells(lesson))  # before the minute of execution
    executed = execute(lesson, report)
    _write(executed, output / LESSON.name, report)
    _write(with_outputs_of(executed, translation), output / TRANSLATION.name, report)


def _connection(folder: str) -> Config:
    """Connect to the kernel through files in a folder: they need no ports, which may be taken."""
    if sys.platform == "win32":
        return Config()
    return Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})


def _report_time(seconds: float, title: str, report: Callable[[str], None]) -> None:
    if seconds >= 0.05:  # not the sections of text alone
        report(f"{seconds:5.1f} s  {title}")


def _write(notebook: NotebookNode, file: Path, report: Callable[[str], None]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, file)
    report(f"wrote {file}")
