"""Each kernel at three sizes and more, in tiles of their real size: the first tests of a GPU."""

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch
from as_numpy_triton import Kernels
from cases import Case
from checkers import (
    GATINGS,
    check_backward,
    check_dtotal,
    check_forward,
    check_gate,
    check_quantized,
    check_residual,
)
from machine_code import MODULES
from triton_interpreter import INTERPRETED

import layernorm.triton

if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("no GPU here", allow_module_level=True)

kernels = Kernels()

# One program a row, or for several rows.
ROWS = [
    Case(dtype="bfloat16", cols=64, rows=300),
    Case(cols=769, values="mean_1e4"),
    Case("rms_norm", "float64", cols=1024),
    Case(dtype="float16", cols=96, layout="channels_first"),
]
# A weight and a bias for each sample: one program sums, and nothing is left to add.
MEMBERS = [Case(cols=64, along=(0,), layout="middle_axis")]
# The sums of dweight and dbias do not fit beside dx.
WIDE_ROWS = [
    Case(cols=5000, rows=3, values="mean_2_to_20"),
    Case("rms_norm", "bfloat16", cols=8192, rows=3),
    Case(dtype="float64", cols=200, layout="channels_first"),
]
LONG_ROWS = [
    Case(cols=20000, rows=2, values="mean_1e4"),
    Case("rms_norm", "bfloat16", cols=65536, rows=2),
    Case(dtype="float64", cols=8200, rows=2),
    Case(dtype="float16", cols=16385, rows=2, values="first_is_outlier"),
    Case(cols=3000, layout="first_axis"),
    Case(dtype="bfloat16", cols=2049, layout="channels_first", rows=1),
]

# What a forward and a backward launch.
GROUPS = [
    (ROWS, {"forward", "backward", "add_programs"}),
    (MEMBERS, {"forward", "backward"}),
    (WIDE_ROWS, {"forward", "backward", "column_sums", "add_programs"}),
    (
        LONG_ROWS,
        {
            *("long_row_sums", "long_row_squares", "long_row_forward", "long_row_normalizer"),
            *("long_row_gradient_sums", "long_row_dx", "column_sums", "add_programs"),
        },
    ),
]
LAUNCHED = {case: names for cases, names in GROUPS for case in cases}

each_case = pytest.mark.parametrize("case", LAUNCHED, ids=lambda case: case.id)


@pytest.fixture
def launched(monkeypatch) -> set[str]:
    """Collect the names of the kernels that run."""
    names = set()
    for module in MODULES:

        def launch(kernel, *arguments, _original=module.launch, **constants) -> None:
            names.add(kernel.__name__)
            _original(kernel, *arguments, **constants)

        monkeypatch.setattr(module, "launch", launch)
    return names


@each_case
def test_forward_and_backward(case: Case, launched) -> None:
    check_forward(kernels, case)
    check_backward(kernels, case)
    assert launched == LAUNCHED[case]


@each_case
def test_with_a_residual(case: Case, launched) -> None:
    check_residual(kernels, case)
    check_dtotal(kernels, case)
    assert launched == LAUNCHED[case]


@pytest.mark.parametrize("gating", GATINGS[:2], ids=["after", "before"])
@each_case
def test_with_a_gate(case: Case, gating, launched) -> None:
    check_gate(kernels, case, gating)
    assert launched == LAUNCHED[case]


@each_case
def test_in_8_bits(case: Case, launched) -> None:
    check_quantized(kernels, case)
    assert ("quantize_rows" in launched) == (case in LONG_ROWS)


def test_each_kernel_is_launched_at_three_sizes() -> None:
    folder = Path(layernorm.triton.__file__).parent
    source = "".join(file.read_text() for file in folder.glob("*.py"))
    every = set(re.findall(r"^@kernel\ndef (\w+)", source, re.MULTILINE)) - {"quantize_rows"}
    assert every == set.union(*LAUNCHED.values())
    sizes = {(name, case.cols) for case, names in LAUNCHED.items() for name in names}
    assert all(sum(name == other for other, _ in sizes) >= 3 for name in every)
