"""`make soak` for a few hundred cases; and that it finds what is wrong, and shrinks it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from own_process import run_tests

pytest.importorskip("ml_dtypes")

SOAK = Path(__file__).parent / "soak"


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


def test_it_finds_what_is_wrong() -> None:
    # Forked cases want a process without other frameworks' threads.
    assert run_tests("soak/inside_soak.py") == {"passed": 6}
