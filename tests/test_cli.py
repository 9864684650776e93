"""The command line: every command runs, its JSON parses, and its checks can fail."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import layernorm
from layernorm import numpy as front_end

pytest.importorskip("rich")

from layernorm.cli import bench, cells, check, main, timing
from layernorm.cli.bench_summary import summarize
from layernorm.cli.inputs import inputs
from layernorm.cli.machine import OtherLoad, caches, kept_to_processors, usable_processors
from layernorm.cli.problem import make_problem
from layernorm.cli.providers import PEERS, Unsupported, find_providers, ours
from layernorm.cli.verify import Judge

RUN_PY = Path(__file__).parent.parent / "benchmarks" / "run.py"

TINY_CELLS = [
    cells.Cell("forward", (3, 17)),
    cells.Cell("forward", (3, 17), output="reused"),
    cells.Cell("forward", (3, 17), cache="cold"),
    cells.Cell("forward", (2, 5, 3, 3), axis=1),
    cells.Cell("backward", (3, 17)),
]


def run_module(*arguments, environment=None, code=None):
    """Run `python -m layernorm`, or some code, in a process of its own."""
    command = ["-c", code] if code else ["-m", "layernorm", *arguments]
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )


@pytest.fixture
def tiny_check(monkeypatch):
    """Check two inputs instead of all."""
    few = [each for each in inputs(quick=True) if each.name in ("3 columns", "mean 1e2 std")]
    monkeypatch.setattr(check, "inputs", lambda quick: few)


@pytest.fixture
def tiny_bench(monkeypatch):
    monkeypatch.setitem(cells.PLANS, "quick", lambda: TINY_CELLS)
    monkeypatch.setattr(bench, "last_level_cache_bytes", lambda: 2**16)


@pytest.fixture
def replace_in_ours(monkeypatch):
    """Give our provider another front end, with some functions replaced."""

    def replace(**functions):
        own = {name: getattr(front_end, name) for name in front_end.__all__}
        monkeypatch.setattr(ours, "front_end", SimpleNamespace(**{**own, **functions}))

    return replace


# info


def test_info_names_the_version_the_kernels_and_the_front_ends(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert layernorm.__version__ in text
    assert "layernorm.numpy" in text


def test_info_imports_no_framework():
    code = (
        "import sys; from layernorm.cli import main; main(['info', '--json']); "
        "assert not {'torch', 'jax', 'keras', 'rich', 'matplotlib'} & set(sys.modules)"
    )
    done = run_module(code=code)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["isa"] in found["isas"]
    served = {each["name"]: each["front_end"] for each in found["frameworks"]}
    for name in ("numpy", "torch", "jax", "flax", "equinox"):
        assert served[name] == f"layernorm.{name}"


def test_caches_grow_with_their_level():
    sizes = [size for _, size in caches()]
    assert sizes == sorted(sizes)


# check


def test_check_passes_and_its_json_parses(tiny_check, capsys):
    assert main(["check", "--quick", "--json", "--peers", "numpy"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holds"] is True
    assert {each["part"] for each in found["ours"]} == {"y", "dx", "dweight", "dbias"}
    assert all(each["error"] <= each["bound"] for each in found["ours"])
    # What the formula loses on rows far from zero is what the check is for.
    far = [each["error"] for each in found["peers"] if each["input"] == "mean 1e2 std"]
    assert max(far) > 5


def test_check_prints_tables_and_a_verdict(tiny_check, capsys):
    assert main(["check", "--quick", "--peers", "numpy"]) == 0
    text = capsys.readouterr().out
    assert "The contract holds" in text
    assert "3 columns" in text


def off_by_eight_ulp(*arguments, **options):
    y = front_end.layer_norm(*arguments, **options)
    return (y.astype(np.float64) * (1 + 8 * 2.0**-23)).astype(y.dtype)


def uncentered_variance(x, weight, bias, *, axis, eps, out):
    wide = np.asarray(x, np.float32)
    mean = wide.mean(axis, keepdims=True)
    var = (wide * wide).mean(axis, keepdims=True) - mean * mean
    shape = [1] * x.ndim
    shape[axis] = -1
    weight, bias = (np.asarray(each, np.float32).reshape(shape) for each in (weight, bias))
    with np.errstate(all="ignore"):
        return ((wide - mean) / np.sqrt(var + eps) * weight + bias).astype(x.dtype)


def swallows_nan(x, *arguments, **options):
    return front_end.layer_norm(np.nan_to_num(x), *arguments, **options)


def depends_on_the_batch(x, *arguments, **options):
    y = front_end.layer_norm(x, *arguments, **options)
    return y if len(x) > 1 else np.nextafter(y, y.dtype.type(0)) if y.itemsize > 2 else y


def depends_on_threads(dy, x, stats, weight):
    dx, dweight, dbias = front_end.layer_norm_backward(dy, x, stats, weight)
    if layernorm.get_num_threads() == 3 and dweight.itemsize > 2:
        dweight = np.nextafter(dweight, dweight.dtype.type(0))
    return dx, dweight, dbias


def mean_instead_of_sum(dy, x, stats, weight):
    dx, dweight, dbias = front_end.layer_norm_backward(dy, x, stats, weight)
    return dx, dweight, dbias / dbias.dtype.type(len(x))


@pytest.mark.parametrize(
    ("name", "fault", "complaint"),
    [
        ("layer_norm", off_by_eight_ulp, "broken: y of 3 columns, float32"),
        ("layer_norm", uncentered_variance, "broken: y of mean 1e2 std, float32"),
        ("layer_norm", swallows_nan, "make their own row NaN and no other: NO"),
        ("layer_norm", depends_on_the_batch, "that row in a batch: y, dx: NO"),
        ("layer_norm_backward", depends_on_threads, "same bits: y, dx, dweight, dbias: NO"),
        ("layer_norm_backward", mean_instead_of_sum, "broken: dbias of 3 columns, float32"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_check_fails_where_we_break_the_contract(
    tiny_check, replace_in_ours, capsys, name, fault, complaint
):
    replace_in_ours(**{name: fault})
    assert main(["check", "--quick", "--peers", "none"]) == 1
    text = capsys.readouterr().out
    assert "The contract is broken" in text
    assert complaint in text.replace("\n", " ")


# peers


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "layernorm.cli.providers.pytorch", raising=False)
    monkeypatch.delenv("LAYERNORM_REQUIRE_PEERS", raising=False)


def test_a_missing_peer_is_a_line(tiny_check, without_torch, capsys):
    assert main(["check", "--quick", "--peers", "torch,numpy"]) == 0
    assert "missing peer: torch: not installed" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "bench"])
def test_a_missing_peer_is_an_error_if_peers_are_required(
    command, tiny_check, tiny_bench, without_torch, monkeypatch, capsys
):
    monkeypatch.setenv("LAYERNORM_REQUIRE_PEERS", "1")
    assert main([command, "--quick", "--peers", "torch,numpy"]) == 2
    assert "LAYERNORM_REQUIRE_PEERS=1, but torch: not installed" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "bench"])
def test_an_unknown_peer_is_a_usage_error(command, capsys):
    assert main([command, "--quick", "--peers", "numpie"]) == 2
    assert "unknown peer numpie" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in PEERS if name != "torch.compile"])
@pytest.mark.filterwarnings("ignore")
def test_each_peer_is_asked_for_the_same_as_we(name):
    """A peer that is given wrong arguments would be reported as wrong, or compared unfairly."""
    found = find_providers(threads=usable_processors(), names=[name])
    if name in found.missing:
        pytest.skip(f"{name}: {found.missing[name]}")
    (peer,) = found.peers
    for shape, axis in (((6, 33), -1), ((2, 33, 3, 5), 1)):
        x = np.random.default_rng(0).standard_normal(shape)
        for type_name in peer.types:
            problem = make_problem(x, type_name, axis=axis, eps=0.5)
            try:
                results = [peer.arrays(peer.forward(problem)())]
            except Unsupported:
                continue
            try:
                results.append(peer.arrays(peer.backward(problem)()))
            except Unsupported:
                assert name == "onnxruntime"
            mine = ours.Ours(usable_processors())
            expected = [
                mine.arrays(call()) for call in (mine.forward(problem), mine.backward(problem))
            ]
            tolerance = 0.05 if problem.x.itemsize == 2 else 1e-4
            for arrays, wanted in zip(results, expected, strict=False):
                for array, want in zip(arrays, wanted, strict=True):
                    assert array.dtype == want.dtype
                    np.testing.assert_allclose(
                        array.astype(float), want.astype(float), rtol=tolerance, atol=tolerance
                    )


# bench


def test_bench_json_parses_and_has_every_cell(tiny_bench, capsys):
    assert main(["bench", "--quick", "--json", "--peers", "numpy", "--repeats", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["missing_peers"] == {}
    by_provider = {
        name: [each for each in found["results"] if each["provider"] == name]
        for name in ("copy", "layernorm", "numpy")
    }
    assert len(by_provider["copy"]) == len(by_provider["layernorm"]) == len(TINY_CELLS)
    assert len(by_provider["numpy"]) == len(TINY_CELLS) - 1  # it has no `out`
    for each in by_provider["layernorm"]:
        assert each["within_bounds"]
        assert each["timing"]["repeats"] == 3
        assert 0 < each["timing"]["lower"] <= each["timing"]["median"] <= each["timing"]["upper"]
    assert {"section", "geometric_mean", "worst_cell"} <= found["summary"][0].keys()


def test_bench_prints_tables_and_draws(tiny_bench, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "times.png"
    arguments = ["bench", "--quick", "--peers", "numpy", "--repeats", "3", "--plot", str(file)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "channels first" in text
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
    wrong = [each for each in results if not each["within_bounds"]]
    assert {each["provider"] for each in wrong} == {"numpy"}
    assert all(each["timing"]["median"] > 0 for each in wrong)


def test_bench_times_one_thread_in_a_process_of_its_own(capsys):
    only = "forward float32 fresh 1x768"
    assert main(["bench", "--json", "--peers", "none", "--only", only, "--repeats", "3"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert {each["threads"] for each in results} == {usable_processors(), 1}


def test_bench_with_no_cell_left_is_a_usage_error(capsys):
    assert main(["bench", "--quick", "--only", "sideways"]) == 2
    assert "sideways" in capsys.readouterr().err


def test_every_plan_has_the_part_that_runs_on_one_thread():
    for plan in cells.PLANS.values():
        assert any(cell.is_named_by(cells.ONE_THREAD_WORDS) for cell in plan())


@pytest.mark.parametrize(
    "cell", [cells.Cell("forward", (700, 65)), cells.Cell("backward", (3, 5, 2), axis=1)]
)
def test_the_judge_finds_one_wrong_row_and_one_wrong_column(cell):
    """It looks at some rows and columns of large problems: the first and the last among them."""
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
    assert {each.repeats for each in timings.values()} == {4}
    turns = [name for name, following in itertools.pairwise(["", *made]) if following == "evict"]
    assert len(turns) == 8  # every sample of every call begins with cold caches
    order = [following for name, following in itertools.pairwise(made) if name == "evict"]
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_long_calls_are_repeated_less_often(monkeypatch):
    monkeypatch.setattr(timing, "LONG_CALL_SECONDS", 0.0)
    monkeypatch.setattr(timing, "LONG_WORK_SECONDS", 0.0)
    assert timing.interleave({"a": lambda: None})["a"].repeats == timing.FEWEST_REPEATS


def test_the_summary_is_the_geometric_mean_over_the_fastest_peers():
    def result(provider, shape, seconds):
        taken = timing.Timing(seconds, seconds, seconds, 30, 1)
        return bench.Result(cells.Cell("forward", shape), 2, provider, taken)

    results = [
        *(result(name, (2, 3), time) for name, time in (("copy", 1), ("layernorm", 2))),
        *(result(name, (2, 3), time) for name, time in (("numpy", 32), ("torch", 16))),
        *(result(name, (4, 5), time) for name, time in (("copy", 1), ("layernorm", 1))),
        *(result(name, (4, 5), time) for name, time in (("numpy", 2), ("torch", 3))),
    ]
    (summary,) = summarize(results)
    assert summary.geometric_mean == pytest.approx(4.0)  # of 8x against torch, 2x against numpy
    assert (summary.worst, summary.worst_cell, summary.worst_against) == (2.0, "4x5", "numpy")


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


# demo


def test_demo_trains_to_the_goal_and_the_norms_learn(capsys, tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    file = tmp_path / "losses.png"
    options = ["--frameworks", "none", "--json", "--plot", str(file)]
    assert main(["demo", "--train-only", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["framework"] for run in found["training"]] == ["numpy", "numpy"]
    for run in found["training"]:
        assert run["test_accuracy"][-1] > 0.95
        assert run["loss"][-1] < run["loss"][0] / 10
        assert all(each["moved"] > 0.05 for each in run["parameters"])
    assert file.read_bytes().startswith(b"\x89PNG")


def test_demo_shows_the_other_frameworks_and_the_first_steps(capsys, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    file = tmp_path / "losses.png"
    options = ["--frameworks", "torch", "--epochs", "1", "--plot", str(file)]
    assert main(["demo", "--train-only", *options]) == 0
    text = capsys.readouterr().out
    assert "PyTorch, Adam" in text
    assert "test accuracy" in text
    assert "LayerNorm([3, 4])" in text
    assert "TypeError: x has type int64" in text


# processes of their own


def test_python_m_layernorm_check():
    done = run_module("check", "--quick", "--json", "--peers", "none")
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["holds"] else 1)
    assert found["holds"], [each for each in found["ours"] if not each["holds"]]


def test_without_rich_the_tables_name_the_remedy_and_json_works():
    hide = "import sys; sys.modules['rich'] = None; from layernorm.cli import main; "
    done = run_module(code=f"{hide} main(['info'])")
    assert done.returncode != 0
    assert "pip install 'layernorm[demo]'" in done.stderr
    done = run_module(code=f"{hide} main(['info', '--json'])")
    assert json.loads(done.stdout)["version"] == layernorm.__version__


def test_run_py_writes_dated_json_and_prints_markdown(tmp_path):
    arguments = ["--plan", "quick", "--only", "1x768 fresh", "--peers", "numpy", "--repeats", "3"]
    done = subprocess.run(
        [sys.executable, str(RUN_PY), *arguments, "--results", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| forward float32, 1x768 |" in done.stdout
    (file,) = tmp_path.iterdir()
    found = json.loads(file.read_text())
    assert {"date", "commit", "machine", "versions", "results", "summary"} <= found.keys()


def test_nothing_else_is_printed_beside_json():
    done = run_module("bench", "--quick", "--json", "--only", "1x768 fresh", "--repeats", "3",
                      "--peers", "none")  # fmt: skip
    assert json.loads(done.stdout)["command"] == "bench"
    assert done.stderr == ""
