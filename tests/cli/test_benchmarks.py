"""`benchmarks/`: the Markdown tables and the curve over widths."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rich")

from layernorm.cli.bench.cells import Cell
from layernorm.cli.bench.results import Report, Result, Timing
from layernorm.cli.problem import number_type
from layernorm.cli.providers.ours import Ours

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Import a script of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def width_curve(script):
    pytest.importorskip("ml_dtypes")
    return script("width_curve")


def markdown_of(script, cell, **seconds):
    """Return the cells of each line of the tables for one cell of two threads."""
    results = [
        Result(cell, 2, name, Timing(each, each, each, 30)) for name, each in seconds.items()
    ]
    report = Report("1", {}, results, {}, {}, {}, 30, None)
    text = script("markdown_tables").as_markdown(report)
    return [[each.strip() for each in line.strip("|").split("|")] for line in text.splitlines()]


@pytest.mark.parametrize(("direction", "share"), [("forward", "50%"), ("backward", "75%")])
def test_markdown_compares_us_with_a_copy_of_the_bytes_moved(direction, share, script):
    """Backward, three arrays are moved, and a copy of x moves two."""
    cell = Cell(direction, (2, 3))
    lines = markdown_of(script, cell, copy=1e-6, layernorm=2e-6, numpy=8e-6)
    assert lines[0] == ["microseconds", "threads", "copy", "layernorm", "of a copy", "numpy"]
    assert lines[2] == [f"{direction} float32, 2x3", "2", "1.00", "**2.00**", share, "8.00"]
    assert lines[-1] == [f"{direction} float32", "2", "1", "4.00x", "4.00x", "2x3, numpy", share]


def test_markdown_says_where_we_are_slower_than_a_peer(script):
    cell = Cell("forward", (2, 3), kind="rms_norm")
    times = {"copy": 1e-6, "layernorm": 2e-6, "numpy": 3e-6, "torch": 1.9e-6}
    _, _, row, *_ = markdown_of(script, cell, **times)
    assert row[0] == "forward float32, RMS norm, 2x3: **slower than torch**"
    _, _, row, *_ = markdown_of(script, cell, **times | {"torch": 2e-6})
    assert row[0] == "forward float32, RMS norm, 2x3"


def test_markdown_has_a_row_for_a_cell_that_is_not_timed(script):
    _, _, row, *_ = markdown_of(script, Cell("forward", (2, 3)), copy=1e-6, numpy=8e-6)
    assert row == ["forward float32, 2x3", "2", "1.00", "-", "-", "8.00"]


def test_the_curve_gives_the_time_of_an_element(width_curve, monkeypatch):
    made = {}

    def interleave(calls, *, repeats):
        made.update(calls)
        return {name: Timing(1e-3, 1e-3, 1e-3, repeats) for name in calls}

    monkeypatch.setattr(width_curve, "interleave", interleave)
    found = width_curve.time_width(Ours(1), 64)
    assert len(found) == 10  # two directions, two norms and a copy, in two types
    for line, nanoseconds in found.items():
        type_name = line.split()[1]
        elements = width_curve.X_BYTES / number_type(type_name).itemsize
        assert nanoseconds == pytest.approx(1e6 / elements)
    for type_name in width_curve.TYPES:
        for kind, gradients in (("layer_norm", 3), ("rms_norm", 2)):
            forward = made[f"forward {type_name} {kind}"]
            assert forward() is forward()  # the same `out`
            assert len(made[f"backward {type_name} {kind}"]()) == gradients


def test_the_curve_is_the_median_of_passes_in_shuffled_orders(width_curve, monkeypatch):
    order = []

    def time_width(ours, cols):
        order.append(cols)
        return {"copy float32": cols + [10.0, 0.0, 1.0][order.count(cols) - 1]}

    monkeypatch.setattr(width_curve, "time_width", time_width)
    widths = range(1, 9)
    found = width_curve.measure(widths, passes=3)
    assert found["nanoseconds_an_element"] == [
        {"line": "copy float32", "medians": [cols + 1.0 for cols in widths]}
    ]
    passes = [order[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(each) == list(widths) for each in passes)
    assert len({tuple(each) for each in passes}) == 3


def test_the_curve_is_stored_and_drawn(tmp_path, width_curve):
    pytest.importorskip("matplotlib")

    def run(*arguments):
        folders = ["--results", str(tmp_path), "--images", str(tmp_path)]
        command = [sys.executable, str(BENCHMARKS / "width_curve.py"), *arguments, *folders]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    results, picture = tmp_path / "width_curve.json", tmp_path / "width_curve.png"
    run("--widths", "1000,1001,1002", "--step", "2", "--passes", "1")
    found = json.loads(results.read_text())
    assert found["widths"] == [1000, 1002]
    assert all(each > 0 for line in found["nanoseconds_an_element"] for each in line["medians"])
    stored, drawn = results.read_bytes(), picture.read_bytes()
    picture.unlink()
    run("--draw")
    assert (results.read_bytes(), picture.read_bytes()) == (stored, drawn)
    assert drawn.startswith(b"\x89PNG")


def test_gpu_goals_leave_out_cells_where_ours_is_wrong_or_has_no_time(script):
    pytest.importorskip("torch")
    problems, goals = script("gpu_problems"), script("gpu_goals")

    def entry(cols, ours, rows=None):
        cell = problems.Cell("forward", "float32", rows or problems.LARGE // cols, cols)
        providers = {"layernorm": ours, "aten": {"device": 6.0}, "copy": {"device": 3.0}}
        return {**cell._asdict(), "providers": providers}

    entries = [
        entry(1024, {"device": 4.0}),
        entry(2048, {"device": 3.0}),
        entry(4096, {"device": 1.0, "wrong": True}),
        entry(8192, {"cannot": "CUDA error"}),
        entry(1024, {"device": 1.0}, rows=8),  # not large
    ]
    *_, row = goals.as_table(entries).splitlines()
    cells = [each.strip() for each in row.strip("|").split("|")]
    assert cells[1:] == ["float32", "4", "2", "0.75, 0.88 (goal 0.95)", "1.50, 1.75"]
