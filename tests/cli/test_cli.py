"""The command line: info, and commands in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import layernorm

pytest.importorskip("rich")

import layernorm.cli
from layernorm.cli import main
from layernorm.cli.command import COMMANDS
from layernorm.cli.machine import caches

RUN_PY = Path(__file__).parents[2] / "benchmarks" / "run.py"


def run_module(*arguments, environment=None, code=None):
    """Run `python -m layernorm`, or `code`, in a process of its own."""
    command = ["-c", code] if code else ["-m", "layernorm", *arguments]
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def test_the_docstring_names_the_commands():
    assert layernorm.cli.__doc__ == f"The command `layernorm`: {', '.join(COMMANDS)}."


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


# processes of their own


def test_python_m_layernorm_check():
    done = run_module("check", "--quick", "--json", "--peers", "none")
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["holds"] else 1)
    assert found["holds"], [each for each in found["ours"] if not each["holds"]]


def test_without_rich_the_tables_name_the_remedy_and_json_works():
    hide = "import sys; sys.modules['rich'] = None; from layernorm.cli import main; "
    done = run_module(code=f"{hide} sys.exit(main(['info']))")
    assert done.returncode == 2
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
    found = json.loads((tmp_path / "numpy.json").read_text())
    assert {"date", "commit", "machine", "versions", "results", "summary"} <= found.keys()


def test_nothing_else_is_printed_beside_json():
    done = run_module("bench", "--quick", "--json", "--only", "1x768 fresh", "--repeats", "3",
                      "--peers", "none")  # fmt: skip
    assert json.loads(done.stdout)["command"] == "bench"
    assert done.stderr == ""
