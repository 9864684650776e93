"""That the soak test finds what is wrong, and shrinks it. Run by tests/test_soak.py."""

import json
import re
import runpy
import sys
from pathlib import Path

import calls_numpy
import draw
import judge
import pytest
import worker
from layouts import Memory
from soak_case import Case


def test_a_case_is_the_same_for_the_same_seed() -> None:
    for framework in draw.WAYS:
        for seed in range(30):
            drawn = draw.draw(framework, seed)
            assert drawn == draw.draw(framework, seed)
            assert eval(repr(drawn), {"Case": Case, "Memory": Memory}) == drawn


def test_a_fault_is_found_and_shrunk(monkeypatch) -> None:
    plant_in(calls_numpy.ours, "layer_norm_forward", monkeypatch)
    plant_in(calls_numpy.layernorm, "layer_norm", monkeypatch)
    found = []
    worker.run("numpy", 0, 120, float("inf"), lambda word, value: found.append((word, value)))
    wrong = [value for word, value in found if word == "wrong"]
    assert wrong
    assert len([value for word, value in found if word == "case"]) == 120
    failure = json.loads(wrong[0])
    assert re.search(r"y is \S+ ulp off, allowed \d", failure["message"])
    simplest = eval(failure["case"], {"Case": Case, "Memory": Memory})
    assert simplest.but(seed=0) == Case(shape=(41,), parameters="", need="").but(seed=0)
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


FOUND = [  # by the soak test, and right since: rows whose roundings all add up
    Case(
        kind="rms_norm",
        dtype="float64",
        parameters="weight zero_centered",
        parameter_values="tiny",
        dy_values="mean_1e4",
        shape=(1, 8, 5346),
        axis=1,
        eps=1e-30,
        need="dx",
        seed=30769520,
    ),
    Case(
        dtype="float64",
        parameters="weight zero_centered",
        parameter_values="tiny",
        dy_values="ordinary",
        shape=(1, 7, 5087, 1),
        axis=(3, 1, 0),
        need="dx",
        seed=2177619120,
    ),
    Case(  # two runs of equal elements
        parameters="",
        shape=(1, 2, 1, 8092),
        axis=(3, 2, -3),
        need="dweight",
        x_memory=Memory(order=(3, 2, 0, 1), steps=(1, 1, -2, 0), margins=(0, 0, 0, 2), offset=24),
        seed=4115090320,
    ),
]


@pytest.mark.parametrize("case", FOUND, ids=repr)
def test_cases_that_were_wrong_once_are_right(case) -> None:
    judge.check(case)


def test_a_process_that_crashes_or_hangs_is_a_wrong_case(capsys) -> None:
    main = Path(__file__).with_name("__main__.py")
    soak = runpy.run_path(str(main))["Soak"](["numpy"], seed=0, cases=None, minutes=1)
    code = "import faulthandler as f; f.enable(); print('case 7', flush=True); f._sigsegv()"
    assert soak.watch([sys.executable, "-c", code], "numpy", 5) == 1
    printed = capsys.readouterr().out
    assert "WRONG, numpy, seed 7: the process ended with -11" in printed
    assert "Segmentation fault" in printed
    assert "check(draw('numpy', 7))" in printed
    assert soak.wrong.total() == 1
