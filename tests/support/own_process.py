"""Running tests, or a script, in a process of its own.

For what cannot share one: TensorFlow crashes when Triton is imported after it, Keras takes one
backend for good, the kernels one instruction set, Triton its interpreter or not.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def run_tests(
    *paths: str, options: tuple[str, ...] = (), timeout: int = 300, **environment: str
) -> dict[str, int]:
    """Run the tests of some paths, relative to tests/; return how many passed, were skipped..."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--maxfail=20"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist", *options]
    command += [str(TESTS / path) for path in paths]
    done = run(command, timeout=timeout, **environment)
    summary = done.stdout.splitlines()[-1]
    return {outcome: int(count) for count, outcome in re.findall(r"(\d+) ([a-z]+)", summary)}


def run_script(script: Path, *arguments: str, timeout: int = 300, **environment: str) -> str:
    """Run a script that imports what this process can; return what it prints."""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    return run([sys.executable, str(script), *arguments], timeout=timeout, **environment).stdout


def run(
    command: list[str], *, timeout: int = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command; AssertionError with its words where it fails."""
    # Without what pytest-xdist tells its workers.
    own = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command,
        env=own | {"TF_CPP_MIN_LOG_LEVEL": "2"} | environment,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    return done
