"""The contract on each instruction set that this machine has.

A process uses one instruction set. This one's is judged by the other tests, and each further one in
a process of its own, which conftest.py stops if the kernels do not use it.
"""

import os
import platform
import shutil
import sys
from pathlib import Path

import pytest
from own_process import run, run_tests

from layernorm import _native

CPU_INFO = Path("/proc/cpuinfo")
OTHERS = [] if "LAYERNORM_ISA" in os.environ else [i for i in _native.isas() if i != _native.isa()]
# The native tests judge each instruction set as well.
EVERY = "5"
# How much memory is allocated does not depend on it.
OPTIONS = ("-m", "not slow", "--deselect=tests/contract/test_memory.py")


@pytest.mark.parametrize("isa", OTHERS)
def test_the_contract_holds_on_each_other_instruction_set(isa) -> None:
    environment = {"LAYERNORM_ISA": isa, "HYPOTHESIS_PROFILE": "few", "LAYERNORM_EVERY": EVERY}
    counts = run_tests(
        "contract", "test_properties.py", options=OPTIONS, timeout=900, **environment
    )
    assert counts["passed"] > 0


@pytest.mark.skipif(not CPU_INFO.exists(), reason="no /proc/cpuinfo to compare with")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have one")
def test_the_instruction_sets_are_those_that_the_kernel_of_linux_offers() -> None:
    offered = next(
        set(line.partition(":")[2].split())
        for line in CPU_INFO.read_text().splitlines()
        if line.startswith("flags")
    )
    needed = {
        "baseline": set(),
        "avx2": {"avx2", "fma", "f16c"},
        "avx512": {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"},
    }
    assert _native.isas() == [isa for isa, flags in needed.items() if flags <= offered]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have one")
@pytest.mark.parametrize(
    ("processor", "isa"),
    [("Nehalem", "baseline"), ("SandyBridge", "baseline"), ("Haswell", "avx2")],
)
def test_an_older_processor_runs_its_own_instructions_alone(processor, isa) -> None:
    if not (qemu := shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")):
        assert not os.environ.get("CI"), "CI needs qemu-user"
        pytest.skip("needs qemu-user")
    probe = Path(__file__).parent / "support" / "process_probes.py"
    command = [qemu, "-cpu", processor, sys.executable, str(probe), "one_call_of_each_kind"]
    assert run(command).stdout.split()[-1] == isa


def test_a_run_meant_for_an_instruction_set_that_is_not_there_stops() -> None:
    with pytest.raises(AssertionError, match="LAYERNORM_ISA=abacus"):
        run_tests("contract/test_errors.py", options=("--collect-only",), LAYERNORM_ISA="abacus")


@pytest.mark.parametrize("name", ["abacus", "", "AVX"])
def test_an_instruction_set_that_is_not_there_is_told_once_and_the_best_taken(name) -> None:
    code = "from layernorm import _native; print(_native.isa(), _native.isa())"
    done = run([sys.executable, "-c", code], LAYERNORM_ISA=name)
    assert done.stdout.split() == [_native.isas()[-1]] * 2
    (line,) = done.stderr.splitlines()
    has = ", ".join(_native.isas())
    assert f'LAYERNORM_ISA is "{name}", expected one that this processor has ({has})' in line
    assert line.endswith(f"the best, {_native.isas()[-1]}, is used")


def test_spaces_around_an_instruction_set_do_not_matter() -> None:
    done = run(
        [sys.executable, "-c", "from layernorm import _native; print(_native.isa())"],
        LAYERNORM_ISA=" baseline ",
    )
    assert (done.stdout.strip(), done.stderr) == ("baseline", "")


def test_the_best_instruction_set_is_taken_by_default() -> None:
    if "LAYERNORM_ISA" in os.environ:
        pytest.skip("LAYERNORM_ISA asks for another")
    assert _native.isa() == _native.isas()[-1]
