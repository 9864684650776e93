"""`make soak` for a few hundred cases; and that it finds what is wrong, and shrinks it."""

import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ml_dtypes")

SOAK = Path(__file__).parent / "soak"


@pytest.fixture
def soak(monkeypatch):
    """Give access to the modules of tests/soak."""
    monkeypatch.syspath_prepend(SOAK)
    return lambda name: importlib.import_module(name)


def run(*arguments: str) -> str:
    command = [sys.executable, str(SOAK), "--minutes", "5", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_few_hundred_cases_of_numpy_are_right() -> None:
    assert re.search(
        r"^numpy +400 +0 ", run("--cases", "400", "--seed", "1", "--frameworks", "numpy"), re.M
    )


def test_a_few_cases_of_every_framework_are_right() -> None:
    printed = run("--cases", "24", "--seed", "1")
    counts = re.findall(r"^(\w+) +24 +0 ", printed, re.M)
    installed = printed.splitlines()[0].partition(": ")[2].split(", ")
    assert counts == installed


def test_a_case_is_the_same_for_the_same_seed(soak) -> None:
    draw, case = soak("draw"), soak("soak_case")
    for framework in draw.WAYS:
        for seed in range(30):
            drawn = draw.draw(framework, seed)
            assert drawn == draw.draw(framework, seed)
            assert eval(repr(drawn), {"Case": case.Case, "Memory": case.Memory}) == drawn


def test_a_fault_is_found_and_shrunk(soak, monkeypatch) -> None:
    judge, worker, case = soak("judge"), soak("worker"), soak("soak_case")
    calls = soak("calls_numpy")
    plant_in(calls.ours, "layer_norm_forward", monkeypatch)
    plant_in(calls.layernorm, "layer_norm", monkeypatch)
    found = []
    worker.run("numpy", 0, 120, float("inf"), lambda word, value: found.append((word, value)))
    wrong = [value for word, value in found if word == "wrong"]
    assert wrong
    assert len([value for word, value in found if word == "case"]) == 120
    failure = soak("json").loads(wrong[0])
    assert re.search(r"y is \S+ ulp off, allowed \d", failure["message"])
    simplest = eval(failure["case"], {"Case": case.Case, "Memory": case.Memory})
    assert simplest.but(seed=0) == case.Case(shape=(41,), parameters="", need="").but(seed=0)
    with pytest.raises(AssertionError, match="ulp off"):
        judge.check(simplest)
    monkeypatch.undo()
    judge.check(simplest)


def plant_in(module, name: str, monkeypatch) -> None:
    """Make the last element of long rows of y a little wrong."""
    right = getattr(module, name)

    def wrong(x, *arguments, **options):
        results = right(x, *arguments, **options)
        y = results[0] if isinstance(results, tuple) else results
        if x.shape[-1] > 40:
            y[..., -1] *= y.dtype.type(1.02)
        return results

    monkeypatch.setattr(module, name, wrong)


def test_a_process_that_crashes_or_hangs_is_a_wrong_case(capsys) -> None:
    soak = runpy.run_path(str(SOAK))["Soak"](["numpy"], seed=0, cases=None, minutes=1)
    code = "import faulthandler as f; f.enable(); print('case 7', flush=True); f._sigsegv()"
    assert soak.watch([sys.executable, "-c", code], "numpy", 5) == 1
    printed = capsys.readouterr().out
    assert "WRONG, numpy, seed 7: the process ended with -11" in printed
    assert "Segmentation fault" in printed
    assert "check(draw('numpy', 7))" in printed
    assert soak.wrong.total() == 1
