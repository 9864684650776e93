"""Running a file of tests in a process of its own: `python -m pytest FILE`.

For frameworks that cannot share one: TensorFlow crashes when Triton is imported after it, and Keras
takes one backend for good.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def run_tests(path: str, *, environment: dict[str, str] | None = None, timeout: int = 300) -> int:
    """Run the tests of a file, relative to tests/; return how many have passed."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--maxfail=5"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist", str(TESTS / path)]
    done = run(command, environment=environment, timeout=timeout)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout[-8000:]
    return int(passed[1])


def run(
    command: list[str], *, environment: dict[str, str] | None = None, timeout: int = 300
) -> subprocess.CompletedProcess[str]:
    """Run a command as a test of its own; AssertionError with its words where it fails."""
    # Without what pytest-xdist tells its workers.
    own = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_")}
    own |= {"TF_CPP_MIN_LOG_LEVEL": "2"} | (environment or {})
    done = subprocess.run(
        command,
        env=own,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    return done
