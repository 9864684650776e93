"""`layernorm bench`: its cells, timings and summary, and its refusal to time wrong results."""

import dataclasses
import itertools
import json
import sys

import numpy as np
import pytest
from faults_of_ours import off_by_eight_ulp
from tiny_cells import CELLS

pytest.importorskip("rich")

from layernorm.cli import main
from layernorm.cli.bench import cells, tables, timing
from layernorm.cli.bench.judge import Judge
from layernorm.cli.bench.results import Report, Result, Timing
from layernorm.cli.bench.stored import as_dict, report_from
from layernorm.cli.bench.summary import summarize
from layernorm.cli.compact_json import compact_json
from layernorm.cli.console import open_console
from layernorm.cli.machine import OtherLoad, kept_to_processors, usable_processors
from layernorm.cli.problem import available_types
from layernorm.cli.providers import ours


def test_bench_json_parses_and_has_every_cell(tiny_bench, capsys):
    assert main(["bench", "--quick", "--json", "--peers", "numpy", "--repeats", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["missing_peers"] == {}
    by_provider = {
        name: [each for each in found["results"] if each["provider"] == name]
        for name in ("copy", "layernorm", "numpy")
    }
    assert len(by_provider["copy"]) == len(by_provider["layernorm"]) == len(CELLS)
    assert len(by_provider["numpy"]) == len(CELLS) - 1  # it has no `out`
    for each in by_provider["layernorm"]:
        assert each["errors"]
        assert each["within_bounds"]
        assert each["samples"] == 3
        lower, median, upper = each["microseconds"]
        assert 0 < lower <= median <= upper
    assert {"section", "geometric_mean", "worst_cell"} <= found["summary"][0].keys()


def test_bench_prints_tables_and_draws(tiny_bench, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "times.png"
    arguments = ["bench", "--quick", "--peers", "numpy", "--repeats", "3", "--plot", str(file)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "channels first" in text
    assert "forward float32, RMS norm" in text
    assert "times fastest peer" in text
    assert file.read_bytes().startswith(b"\x89PNG")


def test_bench_refuses_to_time_us_where_we_are_wrong(tiny_bench, replace_in_ours, capsys):
    replace_in_ours(layer_norm=off_by_eight_ulp)
    assert main(["bench", "--quick", "--peers", "numpy", "--repeats", "3"]) == 1
    text = capsys.readouterr().out
    assert "not timed: layernorm is wrong" in text.replace("\n", " ")


def test_bench_marks_a_wrong_peer_and_times_it_all_the_same(tiny_bench, monkeypatch, capsys):
    from layernorm.cli.providers import numpy_formula

    monkeypatch.setattr(numpy_formula, "_forward", lambda problem: np.zeros_like(problem.x))
    assert main(["bench", "--quick", "--json", "--peers", "numpy", "--repeats", "3"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    wrong = [each for each in results if not each.get("within_bounds", True)]
    assert {each["provider"] for each in wrong} == {"numpy"}
    assert all(each["microseconds"][1] > 0 for each in wrong)


def test_bench_times_one_thread_in_a_process_of_its_own(capsys):
    only = "forward float32 fresh 1x768"
    assert main(["bench", "--json", "--peers", "none", "--only", only, "--repeats", "3"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert {each["threads"] for each in results} == {usable_processors(), 1}


def test_bench_with_no_cell_left_is_a_usage_error(capsys):
    assert main(["bench", "--quick", "--only", "sideways"]) == 2
    assert "sideways" in capsys.readouterr().err


@pytest.mark.parametrize("plan", ["usual", "full"])
def test_rms_norm_is_timed_where_layer_norm_is(plan):
    planned = cells.PLANS[plan]()
    rms = [cell for cell in planned if cell.is_named_by("rms_norm")]
    assert {cell.type for cell in rms} == {"float32", "bfloat16"} & set(available_types())
    assert {cell.layout for cell in rms} == {"rows", "channels_first"}
    assert {dataclasses.replace(cell, kind="layer_norm") for cell in rms} <= set(planned)


def test_every_plan_has_the_part_that_runs_on_one_thread():
    for plan in cells.PLANS.values():
        assert any(cell.is_named_by(cells.ONE_THREAD_WORDS) for cell in plan())


@pytest.mark.parametrize(
    "cell",
    [
        cells.Cell("forward", (700, 65)),
        cells.Cell("backward", (3, 5, 2), axis=1),
        cells.Cell("forward", (700, 65), kind="rms_norm"),
        cells.Cell("backward", (3, 5, 2), axis=1, kind="rms_norm"),
    ],
    ids=lambda cell: f"{cell.direction} {cell.kind}",
)
def test_the_judge_finds_one_wrong_row_and_one_wrong_column(cell):
    """It judges some rows and columns of a large problem, the first and the last among them."""
    problem = cell.problem()
    judge, provider = Judge(problem), ours.Ours(1)
    direction = provider.forward if cell.direction == "forward" else provider.backward
    right = provider.arrays(direction(problem)())
    assert judge.within_bounds(judge.errors(right))
    for place in range(len(right)):
        wrong = [each.copy() for each in right]
        wrong[place][-1] *= 1.001
        assert not judge.within_bounds(judge.errors(tuple(wrong)))


def test_calls_are_interleaved_and_each_repeated():
    made = []
    calls = {name: lambda name=name: made.append(name) for name in "ab"}
    timings = timing.interleave(calls, repeats=4, evict=lambda: made.append("evict"))
    assert {each.samples for each in timings.values()} == {4}
    turns = [name for name, following in itertools.pairwise(["", *made]) if following == "evict"]
    assert len(turns) == 8  # every sample of every call begins with cold caches
    order = [following for name, following in itertools.pairwise(made) if name == "evict"]
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_long_calls_are_repeated_less_often(monkeypatch):
    monkeypatch.setattr(timing, "LONG_CALL_SECONDS", 0.0)
    monkeypatch.setattr(timing, "LONG_WORK_SECONDS", 0.0)
    assert timing.interleave({"a": lambda: None})["a"].samples == timing.FEWEST_REPEATS


def results_of(cell, **seconds):
    """One result for each provider, of two threads."""
    return [Result(cell, 2, name, Timing(each, each, each, 30)) for name, each in seconds.items()]


def test_the_summary_is_the_geometric_mean_over_the_fastest_peers():
    results = [
        *results_of(cells.Cell("forward", (2, 3)), copy=1, layernorm=2, numpy=32, torch=16),
        *results_of(cells.Cell("forward", (4, 5)), copy=1, layernorm=1, numpy=2, torch=3),
    ]
    (summary,) = summarize(results)
    assert summary.geometric_mean == pytest.approx(4.0)  # of 8x against torch, 2x against numpy
    assert (summary.worst, summary.worst_cell, summary.worst_against) == (2.0, "4x5", "numpy")
    assert summary.share_of_copy == pytest.approx(0.5**0.5)  # of 1/2 and 1


@pytest.mark.parametrize(("direction", "share"), [("forward", "50%"), ("backward", "75%")])
def test_tables_compare_us_with_a_copy_of_the_bytes_moved(direction, share, capsys):
    """Backward, three arrays are moved, and a copy of x moves two."""
    results = results_of(cells.Cell(direction, (2, 3)), copy=1, layernorm=2, numpy=16)
    report = Report("1", {}, results, {}, {}, {}, 30, None)
    tables.print_report(report, open_console())
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["of", "a", "copy", share] in rows
    assert [direction, "float32", "8.00", "8.00", "2x3", "numpy", share] in rows


def test_layer_norm_and_rms_norm_are_sections_of_their_own():
    results = [
        *results_of(cells.Cell("forward", (2, 3)), copy=1, layernorm=1, numpy=2),
        *results_of(cells.Cell("forward", (2, 3), kind="rms_norm"), copy=1, layernorm=1, numpy=8),
    ]
    found = {each.section: each.worst for each in summarize(results)}
    assert found == {"forward float32": 2.0, "forward float32, RMS norm": 8.0}


@pytest.mark.parametrize("plan", cells.PLANS)
def test_a_cell_is_found_by_its_words(plan):
    planned = cells.PLANS[plan]()
    for cell in planned:
        assert cells.Cell.from_words(cell.words) == cell
        assert [each for each in planned if each.is_named_by(cell.words)] == [cell]


def test_a_cell_draws_the_problem_that_it_names():
    cell = cells.Cell("backward", (2, 5, 3), "float16", axis=1, kind="rms_norm")
    problem = cell.problem()
    assert (problem.kind, problem.type_name, problem.axis) == (cell.kind, cell.type, cell.axis)
    assert problem.x.shape == problem.dy.shape == cell.shape


def test_a_cell_without_a_kind_is_one_of_layer_norm():
    """Reports from before RMS norm was timed have none."""
    cell = cells.Cell.from_words("backward bfloat16 channels_first warm fresh 2x5x3x3")
    assert cell == cells.Cell("backward", (2, 5, 3, 3), "bfloat16", axis=1)
    assert cell.kind == "layer_norm"


@pytest.mark.parametrize("kind", cells.KINDS)
def test_a_report_is_read_as_it_was_written(kind):
    cell = cells.Cell("forward", (2, 5, 3), "bfloat16", "cold", "reused", axis=1, kind=kind)
    results = [
        Result(cell, 2, "copy", Timing(3e-6, 2e-6, 4e-6, 30)),
        Result(cell, 2, "layernorm", None, {"y": np.inf}, False),
    ]
    written = Report("1", {"processor": "?"}, results, {"numpy": "2"}, {}, {}, 30, 0.5)
    assert report_from(json.loads(compact_json(as_dict(written)))) == written


def test_memory_copies_whole_arrays_and_evicts():
    memory = timing.Memory(2, cache_bytes=2**12)
    memory.evict()
    copies = memory.copies(2**20, fresh=False)
    assert len(copies) == 2
    for copy in copies.values():
        copy()
    memory.close()


def test_other_load_is_known_on_linux():
    load = OtherLoad().processors()
    assert load is None or load >= 0


def test_a_process_is_kept_to_some_processors_for_a_while():
    before = usable_processors()
    with kept_to_processors(1):
        assert usable_processors() == 1 or sys.platform != "linux"
    assert usable_processors() == before
