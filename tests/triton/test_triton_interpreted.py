"""The GPU kernels on the CPU: the other tests in processes that interpret or emulate kernels."""

import os

import pytest
from own_process import run_tests

pytest.importorskip("torch")
pytest.importorskip("triton")


def one_case_in(number: str) -> dict[str, str]:
    """Thin out each test's cases, because this is slow, unless the environment says how much."""
    return {"LAYERNORM_EVERY": os.environ.get("LAYERNORM_EVERY", number)}


@pytest.mark.parametrize(
    "files",
    [["contract", "gate", "quantized"], ["members", "residual", "same_bits", "torch"]],
    ids=" ".join,
)
def test_the_kernels_keep_the_contract_in_the_interpreter(files) -> None:
    paths = [f"triton/test_triton_{file}.py" for file in files]
    counts = run_tests(*paths, timeout=900, TRITON_INTERPRET="1", **one_case_in("3"))
    assert counts["passed"] > 0
    assert "skipped" not in counts


def test_what_triton_compiles_is_right_in_the_emulator() -> None:
    """Layouts, vector loads, shared memory, barriers and rounding are a GPU's there."""
    counts = run_tests(
        "triton/test_triton_each_kernel.py",
        timeout=900,
        LAYERNORM_EMULATE_PTX="1",
        **one_case_in("6"),
    )
    assert counts["passed"] > 0
    assert "skipped" not in counts
