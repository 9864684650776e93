"""Running tests, or a script, in a process of its own.

For what cannot share one: TensorFlow crashes when Triton is imported after it, and Keras's backend,
the kernels' instruction set and Triton's interpreter are chosen once per process.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def run_tests(
    *paths: str, options: tuple[str, ...] = (), timeout: int = 300, **environment: str
) -> dict[str, int]:
    """Run the tests under paths relative to tests/; return how many passed, were skipped, ..."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--maxfail=20"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist", *options]
    command += [str(TESTS / path) for path in paths]
    done = run(command, timeout=timeout, **environment)
    summary = done.stdout.splitlines()[-1]
    return {outcome: int(count) for count, outcome in re.findall(r"(\d+) ([a-z]+)", summary)}


def run_script(script: Path, *arguments: str, timeout: int = 300, **environment: str) -> str:
    """Run a script with this process's import path; return what it prints."""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    return run([sys.executable, str(script), *arguments], timeout=timeout, **environment).stdout


def run(
    command: list[str], *, timeout: int = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command; raise AssertionError with its output if it fails."""
    # Without the variables that pytest-xdist sets for its workers.
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


def run_alone(script: Path, *arguments: str, gib: int) -> None:
    """Run a script that needs so many GiB while no other such script runs; skip without them."""
    with _no_other_large_script():
        if _free_gib() < gib + 2:
            pytest.skip(f"needs {gib + 2} GiB of free memory")
        run_script(script, *arguments, timeout=600)


@contextmanager
def _no_other_large_script() -> Iterator[None]:
    """Wait for those of other workers: two together may need more memory than there is."""
    fcntl = pytest.importorskip("fcntl", reason="this system has no file locks of this kind")
    with open(Path(tempfile.gettempdir()) / "layernorm_many_elements.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _free_gib() -> float:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 0
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) / 2**20
