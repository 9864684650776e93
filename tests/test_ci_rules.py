"""conftest.py's rules, tried on a folder of tests of their own."""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

CONFTEST = Path(__file__).with_name("conftest.py")

TESTS = {
    "missing_in_a_test": """
import pytest
def test_it():
    pytest.importorskip('no_such_framework')
""",
    "missing_in_a_module": """
import pytest
pytest.importorskip('no_such_framework')
def test_it():
    pass
""",
    "missing_in_a_fixture": """
import pytest
@pytest.fixture
def it():
    pytest.importorskip('no_such_framework')
def test_it(it):
    pass
""",
    "another_skip": """
import pytest
def test_it():
    pytest.skip('this machine has no such thing')
""",
    "slow": """
import pytest
@pytest.mark.slow
def test_it():
    assert False
""",
    "not_judged": """
def test_it():
    raise NotImplementedError('the reference needs an np.longdouble wider than float64')
""",
    "made_up_cases": """
from hypothesis import settings
def test_it():
    s = settings()
    assert s.max_examples >= 250 and s.derandomize and s.deadline is None
""",
}


class Item(NamedTuple):
    nodeid: str


@functools.cache
def outcomes(ci: str, *options: str) -> dict[str, str]:
    """Run TESTS under our conftest.py; return how each ends."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(CONFTEST, folder)
        for name, test in TESTS.items():
            Path(folder, f"test_{name}.py").write_text(test)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        command = [sys.executable, "-m", "pytest", "-rA", "--tb=no", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, "--continue-on-collection-errors", *options, "."],
            cwd=folder,
            env=environment | {"CI": ci},
            capture_output=True,
            text=True,
            check=False,
        )
    found = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) .*?test_(\w+)\.py", done.stdout, re.M)
    return {name: outcome for outcome, name in found}


@pytest.mark.parametrize("place", ["test", "module", "fixture"])
def test_a_missing_framework_is_a_failure_in_ci(place) -> None:
    assert outcomes("true")[f"missing_in_a_{place}"] in ("FAILED", "ERROR")
    assert outcomes("")[f"missing_in_a_{place}"] == "SKIPPED"


def test_another_skip_is_no_failure_in_ci() -> None:
    assert outcomes("true")["another_skip"] == "SKIPPED"


def test_slow_tests_run_in_ci_and_on_demand() -> None:
    assert outcomes("true")["slow"] == "FAILED"
    assert outcomes("")["slow"] == "SKIPPED"
    assert outcomes("", "-m", "slow")["slow"] == "FAILED"


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="np.longdouble is too narrow")
def test_what_the_reference_cannot_judge_is_a_failure_where_it_should_be_able_to() -> None:
    assert outcomes("true")["not_judged"] == "FAILED"


def test_some_cases_of_each_test_are_drawn_and_not_the_same_places_of_all() -> None:
    spec = importlib.util.spec_from_file_location("rules", CONFTEST)
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    places = {name: range(20) for name in "abcd"} | {"alone": range(1)}
    items = [Item(f"test_{name}[{n}]") for name, every in places.items() for n in every]
    drawn = rules.one_case_in(10, items)
    found = {name: [e.nodeid[6:] for e in drawn if f"_{name}[" in e.nodeid] for name in places}
    assert [len(each) for each in found.values()] == [2, 2, 2, 2, 1]
    assert len({tuple(found[name]) for name in "abcd"}) > 1
    assert rules.one_case_in(10, items) == drawn
    assert rules.one_case_in(1, items) == items


def test_ci_tries_several_thousand_made_up_cases() -> None:
    assert outcomes("true")["made_up_cases"] == "PASSED"
