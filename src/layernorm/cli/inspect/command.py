"""The command `layernorm inspect`."""

import argparse
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from layernorm.cli.compact_json import compact_json
from layernorm.cli.console import make_table, open_console
from layernorm.inspection.page import load_matplotlib
from layernorm.inspection.report import Report
from layernorm.inspection.tables import summary, tables

HELP = "the norms of a model on your data: errors, times, ranges, what convert would do"

_FRONT_ENDS = (  # Keras first: on PyTorch, its models are PyTorch's modules too
    ("keras", "layers.Layer", "layernorm.keras"),
    ("torch", "nn.Module", "layernorm.torch"),
    ("flax", "linen.Module", "layernorm.flax"),
    ("flax", "nnx.Module", "layernorm.flax"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` takes."""
    parser.add_argument(
        "model",
        metavar="FILE.py:FUNCTION",
        help="a function without arguments, or MODULE:FUNCTION, that returns (model, inputs): a "
        "model of PyTorch, Keras or Flax, and a tuple of arguments, a dictionary of keyword "
        "arguments or a single argument",
    )
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="also write a page")


def run(options: argparse.Namespace) -> int:
    """Inspect the model; return the exit code.

    Raises: ValueError for a model that cannot be loaded or inspected.
    """
    console = None if options.json else open_console()
    if options.html:
        _check_page(options.html)
    model, args, keywords = _load(options.model)
    inspect = _inspector(model)
    try:
        report: Report = inspect(model, *args, **keywords)
    except (RuntimeError, TypeError) as error:
        raise ValueError(str(error)) from error
    if console is None:
        print(compact_json({"command": "inspect", **asdict(report)}), end="")
    else:
        _print(report, console)
    if options.html:
        try:
            report.save_html(options.html)
        except OSError as error:
            raise ValueError(f"cannot write {options.html}: {error}") from error
        if console is not None:
            page = f"\nthe page is {options.html.resolve()}"
            console.print(page, markup=False, soft_wrap=True)
    return 0


def _print(report: Report, console: Any) -> None:
    from rich.markup import escape

    console.width = 1000  # or a table loses what does not fit: names are for copying
    for line in summary(report):
        console.print(line, markup=False, soft_wrap=True)
    for title, note, headings, rows in tables(report):
        console.print(f"\n[bold]{title}[/]. {note}", soft_wrap=True)
        cells = [[escape(each) for each in row] for row in rows]
        console.print(make_table(headings, cells), crop=False)


def _check_page(file: Path) -> None:
    """Find out before the model runs whether its page can be drawn and written."""
    load_matplotlib()
    if not file.resolve().parent.is_dir():
        raise ValueError(f"cannot write {file}: there is no folder {file.resolve().parent}")


def _load(target: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return the model, and the arguments and keyword arguments to call it with."""
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise ValueError(f"{target!r} is not FILE.py:FUNCTION or MODULE:FUNCTION")
    function = getattr(_import(place), name, None)
    if not callable(function):
        raise ValueError(f"{place} has no function {name}")
    try:
        loaded = function()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"{target} raised {type(error).__name__}: {error} ({where.filename}:{where.lineno})"
        ) from error
    if not isinstance(loaded, tuple) or len(loaded) != 2:
        raise ValueError(f"{target} returned {type(loaded).__name__}, expected (model, inputs)")
    model, inputs = loaded
    if isinstance(inputs, Mapping):
        return model, (), dict(inputs)
    return model, inputs if isinstance(inputs, tuple) else (inputs,), {}


def _import(place: str) -> Any:
    file = Path(place)
    if file.suffix == ".py" and not file.is_file():
        raise ValueError(f"there is no file {place}")
    sys.path.insert(0, str(file.resolve().parent) if file.suffix == ".py" else "")
    try:
        return _run_file(file) if file.suffix == ".py" else importlib.import_module(place)
    except Exception as error:
        raise ValueError(f"cannot import {place}: {type(error).__name__}: {error}") from error


def _run_file(file: Path) -> Any:
    """Import a file, whichever module of its name is imported already."""
    name = file.name  # no module that is imported has it
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _inspector(model: Any) -> Any:
    """Return `inspect` of the front end for the model's framework."""
    for framework, path, front_end in _FRONT_ENDS:
        base: Any = sys.modules.get(framework)
        for name in path.split("."):
            base = getattr(base, name, None)
        if base is not None and isinstance(model, base):
            return importlib.import_module(front_end).inspect
    raise ValueError(
        f"the model is of type {type(model).__name__}, expected a torch.nn.Module, a Keras model, "
        "or a Flax module"
    )
