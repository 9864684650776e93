"""The GPU kernels on the CPU: tests/triton in a process where Triton interprets its kernels."""

import pytest
from own_process import run_tests

pytest.importorskip("torch")
pytest.importorskip("triton")


@pytest.mark.parametrize("file", ["contract", "same_bits", "torch"])
def test_the_kernels_keep_the_contract_in_the_interpreter(file) -> None:
    path = f"triton/test_triton_{file}.py"
    counts = run_tests(path, timeout=900, TRITON_INTERPRET="1")
    assert counts["passed"] > 0
    assert "skipped" not in counts
