"""The kernels as machine code for sm_90, without a GPU: wide loads, and registers that suffice."""

import re

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from triton_interpreter import INTERPRETED  # noqa: E402

if INTERPRETED:
    pytest.skip("compiles, which the interpreter does not", allow_module_level=True)

from machine_code import codes  # noqa: E402

# Some of each way through the plan.
PLANS = [
    *((torch.bfloat16, cols, -1) for cols in (256, 4096, 16384)),
    *((torch.float32, cols, -1) for cols in (769, 1024, 8192, 65536)),
    *((torch.float32, 128, 1), (torch.bfloat16, 512, 1), (torch.bfloat16, 2048, 1)),
    *((torch.float64, 1024, -1), (torch.float64, 8192, -1)),
    *((torch.bfloat16, 64, 1), (torch.float32, 7, -1)),  # their sums take the most registers
    (torch.bfloat16, 32768, 1),  # the most partial sums of a tile
]


@pytest.mark.parametrize(("dtype", "cols", "axis"), PLANS)
def test_no_kernel_spills(dtype, cols, axis) -> None:
    for name, code in codes(dtype, cols, axis).items():
        # float64: its division calls a subroutine, for which 8 bytes are put aside
        allowed = 8 if dtype == torch.float64 else 0
        assert code.stack <= allowed, (name, code.usage)


# A tile that does takes 8 KB and more: where weight lay otherwise than x, it took 64.
@pytest.mark.parametrize(("dtype", "cols", "axis"), PLANS)
def test_no_tile_goes_through_shared_memory(dtype, cols, axis) -> None:
    for name, code in codes(dtype, cols, axis).items():
        if name in ("forward", "wide_forward", "wide_squares", "wide_gradient_sums", "wide_dx"):
            assert code.shared <= 4096, name


@pytest.mark.parametrize(
    ("dtype", "cols", "axis"), [p for p in PLANS if p[1] not in (7, 769) and p[2] == -1]
)
def test_rows_are_loaded_and_stored_16_bytes_at_a_time(dtype, cols, axis) -> None:
    for name, code in codes(dtype, cols, axis).items():
        wide = len(re.findall(r"LDG\S*\.128", code.sass))
        if name in ("wide_normalizer", "add_programs"):  # they read no rows
            continue
        assert wide > 0, name
        assert re.search(r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v2\.b64", code.ptx), name
        if name in ("forward", "wide_forward", "backward", "wide_dx"):
            assert re.search(r"STG\S*\.128", code.sass), name


@pytest.mark.parametrize(("dtype", "cols", "axis"), PLANS)
def test_nothing_is_fused_or_flushed_that_the_source_does_not_say(dtype, cols, axis) -> None:
    for name, code in codes(dtype, cols, axis).items():
        assert ".ftz" not in code.ptx, name
        assert ".approx" not in code.ptx, name
        # a fused operation of float32 has no place in the sums of squares
        if name in ("wide_sums", "wide_squares"):
            assert "fma.rn.f32" not in code.ptx, name
