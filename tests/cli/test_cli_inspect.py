"""The command `layernorm inspect`: a model from a file or a module, and its report."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict

import pytest
from short_inspections import times_are_short  # noqa: F401

pytest.importorskip("rich")
torch = pytest.importorskip("torch")

import layernorm.torch as ours  # noqa: E402
from layernorm.cli import main  # noqa: E402
from layernorm.cli.inspect import command  # noqa: E402

NETWORK = """
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        name = "a name in [/] which is long enough to be cut " * 3
        self.norms = nn.ModuleDict({name: nn.LayerNorm(8)})
        self.last = nn.RMSNorm(8)

    def forward(self, x, *, times=1, plus=0):
        for norm in self.norms.values():
            x = norm(x) * times + plus
        return self.last(x)


X = torch.arange(24.0).reshape(3, 8) ** 2
X[1] = 7.0  # a row of equal elements: its |mean| / std is infinite

def single(): return Network(), X
def positional(): return Network(), (X,)
def named(): return Network(), {"x": X, "times": 3, "plus": X}
def of_numpy(): return X.numpy(), X
def alone(): return Network()
def normless(): return nn.Linear(8, 3), X
def narrow(): return Network(), X[:, :3]
def meta(): return Network().to("meta"), X
def raises(): raise OSError("no weights")
def needs(path): return Network(), X
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the network, from which imports are undone."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "network.py").write_text(NETWORK)
    (tmp_path / "broken.py").write_text("def f(:")
    (tmp_path / "incomplete.py").write_text("import no_such_package")
    yield tmp_path
    for name in ("network", "network.py", "json.py", "broken.py", "incomplete.py", "incomplete"):
        sys.modules.pop(name, None)


def names(norms):
    return [each["name"].partition(".")[0] for each in norms]


@pytest.mark.parametrize(
    "target", ["network.py:single", "network:positional", "network.py:named", "json.py:single"]
)
def test_the_model_is_a_function_of_a_file_or_module(target, folder, capsys):
    """json.py: a file whose name a module has that is imported already."""
    (folder / "json.py").write_text(NETWORK)
    assert main(["inspect", target, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert names(found["norms"]) == ["norms", "last"]
    assert found["model"].endswith("Network")
    assert sys.modules["json"] is json


def test_files_of_one_name_in_two_folders_are_two_files(folder, capsys):
    other = folder / "other"
    other.mkdir()
    (other / "network.py").write_text("def single(): raise KeyError('the other')")
    assert main(["inspect", "network.py:single", "--json"]) == 0
    assert main(["inspect", "other/network.py:single", "--json"]) == 2
    assert "the other" in capsys.readouterr().err


def test_the_inputs_are_those_of_a_call(folder):
    assert command._load("network.py:single")[1][0].shape == (3, 8)
    _, args, keywords = command._load("network.py:named")
    assert args == ()
    assert (keywords["times"], keywords["plus"].shape) == (3, (3, 8))


def test_json_is_strict_and_has_what_the_report_has(folder, capsys, monkeypatch):
    reports = []
    own = ours.inspect
    monkeypatch.setattr(ours, "inspect", lambda *given: reports.append(own(*given)) or reports[0])
    assert main(["inspect", "network.py:single", "--json"]) == 0

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    printed = capsys.readouterr()
    found = json.loads(printed.out, parse_constant=refuse)
    assert printed.err == ""
    report = asdict(reports[0])
    assert found.pop("command") == "inspect"
    assert found["norms"][0]["rows"].pop("mean_over_std") == "inf"
    assert report["norms"][0]["rows"].pop("mean_over_std") == math.inf
    assert found == json.loads(json.dumps(report))


def test_the_page(folder, capsys):
    pytest.importorskip("matplotlib")
    page = folder / "[bold] page.html"
    assert main(["inspect", "network.py:single", "--html", str(page)]) == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert f"the page is {page}" in capsys.readouterr().out
    assert main(["inspect", "network.py:single", "--json", "--html", "second.html"]) == 0
    json.loads(capsys.readouterr().out)
    assert (folder / "second.html").exists()


def test_without_matplotlib_the_page_names_the_remedy(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["inspect", "network.py:single", "--html", "page.html"]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


def test_without_rich_json_works(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["inspect", "network.py:single"]) == 2
    assert "or pass --json" in capsys.readouterr().err
    assert main(["inspect", "network.py:single", "--json"]) == 0


BAD = {
    "network.py": "'network.py' is not FILE.py:FUNCTION or MODULE:FUNCTION",
    "nothing.py:single": "there is no file nothing.py",
    "no_such_module:single": "cannot import no_such_module: ModuleNotFoundError: No module named",
    "broken.py:single": "cannot import broken.py: SyntaxError: ",
    "incomplete.py:single": "cannot import incomplete.py: ModuleNotFoundError: .*no_such_package",
    "network.py:absent": "network.py has no function absent",
    "network.py:X": "network.py has no function X",
    "network.py:alone": r"returned Network, expected \(model, inputs\)",
    "network.py:raises": r"network.py:raises raised OSError: no weights \(.*network.py:\d+\)",
    "network.py:needs": "network.py:needs raised TypeError: .* missing 1 required",
    "network.py:of_numpy": "of type ndarray, expected a torch.nn.Module, a Keras model, or",
    "network.py:normless": "Linear has no norm",
    "network.py:narrow": "Network raised RuntimeError on these inputs, after 0 calls of norms",
    "network.py:meta": "on the meta device",
}


@pytest.mark.parametrize("target", BAD)
def test_bad_input_is_one_clear_line(target, folder, capsys):
    assert main(["inspect", target]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("layernorm: ")
    assert printed.err.count("\n") == 1
    assert re.search(BAD[target], printed.err), printed.err


def test_a_page_that_cannot_be_written_is_one_clear_line(folder, capsys):
    pytest.importorskip("matplotlib")
    # Before the model is made, which here would raise.
    assert main(["inspect", "network.py:raises", "--html", "no/such/page.html"]) == 2
    assert capsys.readouterr().err.startswith("layernorm: cannot write ")
    assert main(["inspect", "network.py:single", "--html", "."]) == 2  # a folder
    assert capsys.readouterr().err.startswith("layernorm: cannot write ")


def test_names_are_not_cut_where_the_output_is_piped(folder):
    code = (
        "import sys; from layernorm.inspection import measure; "
        "from layernorm.cli import main; "
        "measure.OF_A_NORM = measure.OF_THE_MODEL = 0.0; "
        "sys.exit(main(['inspect', 'network.py:single']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False,
        env={**os.environ, "COLUMNS": "60", "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name = "norms." + "a name in [/] which is long enough to be cut " * 3
    rows = [line for line in done.stdout.splitlines() if name in line]
    assert len(rows) >= 2
    assert "\x1b" not in done.stdout
    assert "What the norms compute. The first call" in done.stdout
