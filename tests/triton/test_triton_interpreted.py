"""The GPU kernels on the CPU: the other tests in a process where Triton interprets kernels."""

import os

import pytest
from own_process import run_tests

pytest.importorskip("torch")
pytest.importorskip("triton")


# Of each test's cases one in 2 in so slow an interpreter, unless told.
EVERY = os.environ.get("LAYERNORM_EVERY", "2")


@pytest.mark.parametrize(
    "files",
    [["contract", "gate", "quantized"], ["members", "residual", "same_bits", "torch"]],
    ids=" ".join,
)
def test_the_kernels_keep_the_contract_in_the_interpreter(files) -> None:
    paths = [f"triton/test_triton_{file}.py" for file in files]
    counts = run_tests(*paths, timeout=900, TRITON_INTERPRET="1", LAYERNORM_EVERY=EVERY)
    assert counts["passed"] > 0
    assert "skipped" not in counts
