"""`layernorm demo`: it trains to its goal, shows its snippets, and sums up check and bench."""

import json

import pytest
from faults_of_ours import off_by_eight_ulp

pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from layernorm.cli import main
from layernorm.cli.bench import measure as bench_measure
from layernorm.cli.check import measure as check_measure
from layernorm.cli.compact_json import compact_json
from layernorm.cli.demo.networks import find
from layernorm.cli.demo.snippets import SNIPPETS, session


def test_demo_trains_to_the_goal_and_the_norms_learn(capsys, tmp_path):
    file = tmp_path / "demo.png"
    options = ["--frameworks", "none", "--json", "--plot", str(file)]
    assert main(["demo", "--train-only", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["framework"] for run in found["training"]] == ["numpy", "numpy"]
    for run in found["training"]:
        assert run["test_accuracy"][-1] > 0.95
        assert run["loss"][-1] < run["loss"][0] / 10
        assert all(each["moved"] > 0.05 for each in run["parameters"])
    assert file.read_bytes().startswith(b"\x89PNG")


def test_demo_shows_the_frameworks_and_names_the_missing_ones(capsys, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    for name in ("jax", "tensorflow", "keras"):
        monkeypatch.setitem(find._PACKAGES, name, ("no_such_package",))
    options = ["--train-only", "--epochs", "1", "--plot", str(tmp_path / "demo.png")]
    assert main(["demo", *options]) == 0
    text = capsys.readouterr().out
    assert "PyTorch, Adam" in text
    assert "test accuracy" in text
    assert ">>> layernorm.torch.convert(model)" in text
    for name in ("JAX", "TensorFlow", "Keras"):
        assert f"(not repeated in {name}: no_such_package is not installed)" in text
    assert "(not run: no_such_package is not installed)" in text


@pytest.mark.filterwarnings("ignore")  # the frameworks' own
@pytest.mark.parametrize(
    ("place", "output"),
    [
        (0, "array([2., 2.,"),
        (1, "tensor([[-1.2247,  0.0000,  1.2247]])"),
        (2, "(True, True)"),
        (3, "["),
    ],
)
def test_each_snippet_gives_its_output(place, output):
    snippet = SNIPPETS[place]
    if snippet.framework is not None:
        pytest.importorskip(snippet.framework)
    lines = list(session(snippet.source, {}))
    assert lines[0].startswith(">>> import")
    assert any(line.startswith(output) for line in lines)


@pytest.mark.parametrize("full", [False, True])
def test_demo_sums_up_check_and_bench(full, tiny_check, tiny_bench, capsys, tmp_path, monkeypatch):
    for module in (check_measure, bench_measure):
        monkeypatch.setattr(module, "QUICK_PEERS", ("numpy",))
    monkeypatch.setattr("layernorm.cli.demo.tables.SNIPPETS", ())
    options = ["--epochs", "1", "--frameworks", "none", "--plot", str(tmp_path / "demo.png")]
    assert main(["demo", *options, *(["--full"] if full else [])]) == 0
    text = capsys.readouterr().out
    assert "The contract holds" in text
    assert "Faster than every peer in" in text
    assert ("peers: float32 y" in text) == full
    assert ("times fastest peer" in text) == full


@pytest.mark.parametrize("wrong_in", ["check", "bench"])
def test_demo_fails_where_a_result_is_wrong(
    wrong_in, tiny_check, tiny_bench, replace_in_ours, capsys, tmp_path, monkeypatch
):
    for module in (check_measure, bench_measure):
        monkeypatch.setattr(module, "QUICK_PEERS", ("numpy",))
    monkeypatch.setattr("layernorm.cli.demo.tables.SNIPPETS", ())
    other = {"check": "_bench", "bench": "_check"}[wrong_in]
    monkeypatch.setattr(f"layernorm.cli.demo.command.{other}", lambda *_: True)
    replace_in_ours(layer_norm=off_by_eight_ulp)
    options = ["--epochs", "1", "--frameworks", "none", "--plot", str(tmp_path / "demo.png")]
    assert main(["demo", *options]) == 1
    text = capsys.readouterr().out
    assert {"check": " > 5 ", "bench": "A result is wrong"}[wrong_in] in text


def test_a_report_within_a_report_has_an_entry_a_line_too():
    inner = {"command": "check", "ours": [{"a": 1}, {"a": 2}]}
    assert compact_json({"command": "demo", "check": inner}).splitlines() == [
        *("{", ' "command": "demo",', ' "check": {', '  "command": "check",', '  "ours": ['),
        *('   {"a": 1},', '   {"a": 2}', "  ]", " }", "}"),
    ]
