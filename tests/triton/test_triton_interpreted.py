"""The GPU kernels on the CPU: the other tests in a process where Triton interprets kernels."""

import pytest
from own_process import run_tests

pytest.importorskip("torch")
pytest.importorskip("triton")


@pytest.mark.parametrize(
    "files",
    [["contract", "gate", "quantized"], ["members", "residual", "same_bits", "torch"]],
    ids=" ".join,
)
def test_the_kernels_keep_the_contract_in_the_interpreter(files) -> None:
    paths = [f"triton/test_triton_{file}.py" for file in files]
    counts = run_tests(*paths, timeout=900, TRITON_INTERPRET="1")
    assert counts["passed"] > 0
    assert "skipped" not in counts
