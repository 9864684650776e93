"""The GPU kernels on the CPU: tests/triton in a process where Triton interprets its kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

TESTS = Path(__file__).parent
COMMAND = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--maxfail=20"]
COMMAND += ["-p", "no:cacheprovider", "-p", "no:xdist"]


@pytest.mark.parametrize("file", ["contract", "same_bits", "torch"])
def test_the_kernels_keep_the_contract_in_the_interpreter(file) -> None:
    # Without what pytest-xdist tells its workers.
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*COMMAND, str(TESTS / "triton" / f"test_triton_{file}.py")],
        env=environment | {"TRITON_INTERPRET": "1"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
