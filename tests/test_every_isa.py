"""The contract on each instruction set that this machine has.

A process takes one instruction set for good, so this run judges the one it took, and each of the
others gets a pytest of its own. conftest.py stops such a run if the kernels did not obey.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from layernorm import _native

TESTS = Path(__file__).parent
OTHERS = [] if "LAYERNORM_ISA" in os.environ else [i for i in _native.isas() if i != _native.isa()]
# The native tests judge each instruction set as well. No factor of the number of types or kinds.
EVERY = "3"
# Memory is asked for in the same way on each.
COMMAND = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--maxfail=20", "-m", "not slow"]
COMMAND += ["-p", "no:cacheprovider", "-p", "no:xdist", f"--ignore={TESTS}/contract/test_memory.py"]


@pytest.mark.parametrize("isa", OTHERS)
def test_the_contract_holds_on_each_other_instruction_set(isa) -> None:
    # Without what pytest-xdist tells its workers.
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"LAYERNORM_ISA": isa, "HYPOTHESIS_PROFILE": "few", "LAYERNORM_EVERY": EVERY}
    arguments = [str(TESTS / "contract"), str(TESTS / "test_properties.py")]
    done = subprocess.run(
        COMMAND + arguments,
        env=environment,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"on {isa}:\n{done.stdout[-8000:]}\n{done.stderr[-2000:]}"


def test_a_run_meant_for_an_instruction_set_that_is_not_there_stops() -> None:
    environment = os.environ | {"LAYERNORM_ISA": "abacus"}
    run = [*COMMAND, "--collect-only", str(TESTS / "contract" / "test_errors.py")]
    done = subprocess.run(
        run, env=environment, cwd=TESTS.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "LAYERNORM_ISA=abacus" in done.stderr


def test_the_best_instruction_set_is_taken_by_default() -> None:
    if "LAYERNORM_ISA" in os.environ:
        pytest.skip("LAYERNORM_ISA asks for another")
    assert _native.isa() == _native.isas()[-1]
