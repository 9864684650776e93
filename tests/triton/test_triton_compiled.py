"""The kernels as machine code for sm_90, compiled without a GPU."""

import re
from collections.abc import Collection, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from triton_interpreter import INTERPRETED  # noqa: E402

if INTERPRETED:
    pytest.skip("compiles, which the interpreter does not", allow_module_level=True)

from machine_code import Code, Launches, codes, compile_launch  # noqa: E402

from layernorm.torch.arguments import Definition  # noqa: E402
from layernorm.torch.gpu import backward as gpu_backward  # noqa: E402
from layernorm.torch.gpu import forward as gpu_forward  # noqa: E402
from layernorm.torch.gpu import quantized as gpu_quantized  # noqa: E402

# Each kind of tile.
PROBLEMS = [
    *((torch.bfloat16, cols, -1) for cols in (256, 4096, 16384)),
    *((torch.float32, cols, -1) for cols in (769, 1024, 8192, 65536)),
    *((torch.float32, 128, 1), (torch.bfloat16, 512, 1), (torch.bfloat16, 2048, 1)),
    *((torch.float64, 1024, -1), (torch.float64, 8192, -1)),
    *((torch.bfloat16, 64, 1), (torch.float32, 7, -1)),  # their sums take the most registers
    (torch.bfloat16, 32768, 1),  # the most partial sums of a tile
]

# Each type, and all kernels. Disassembling takes about as long as compiling.
DISASSEMBLED = (256, 1024, 65536)


# One test for a problem: compiling takes the time.
@pytest.mark.parametrize(("dtype", "cols", "axis"), PROBLEMS)
def test_registers_suffice_loads_are_vectors_and_nothing_is_approximate(dtype, cols, axis) -> None:
    for name, code in codes(dtype, cols, axis).items():
        assert_no_spills(name, code, dtype)
        assert_no_tile_goes_through_shared_memory(name, code)
        if axis == -1 and cols * dtype.itemsize % 16 == 0:
            assert_16_bytes_are_loaded_and_stored_at_a_time(name, code)
            if cols in DISASSEMBLED:
                assert_the_assembler_keeps_loads_and_stores_of_16_bytes(name, code)
        assert_nothing_is_fused_or_flushed_that_the_source_does_not_say(name, code)


# Two axes of outer, members apart and alternating, in the forms of the problems above; three.
MEMBERS = [
    *((torch.bfloat16, (2, 3, cols), (2, 1, cols), -1) for cols in (256, 16384)),
    *((torch.float32, (9, 3, cols), (1, 3, cols), -1) for cols in (7, 1024, 65536)),
    *((torch.bfloat16, (2, cols, 50), (2, cols, 1), 1) for cols in (64, 2048)),
    *((torch.bfloat16, (2, 3, 4, cols), (1, 3, 1, cols), -1) for cols in (64, 4096)),
    (torch.float32, (2, 3, 4, 128, 50), (1, 3, 1, 128, 1), 3),
]


@pytest.mark.parametrize(("dtype", "shape", "parameter_shape", "axis"), MEMBERS)
def test_registers_suffice_for_members_too(
    monkeypatch, dtype, shape, parameter_shape, axis
) -> None:
    launches = Launches(monkeypatch)
    x, parameter = torch.empty(shape, dtype=dtype), torch.empty(parameter_shape, dtype=dtype)
    definition = Definition((axis,), 1e-5)
    y, *statistics = gpu_forward.forward(x, parameter, parameter, definition)
    given = (y, x, parameter, dtype, definition, [True] * 3, statistics)
    gpu_backward.Backward(*given).run()
    # add_programs is compiled above
    launched = {kernel.__name__ for kernel, _, _ in launches.launched}
    for name, code in compiled(launches, launched - {"add_programs"}):
        assert_no_spills(name, code, dtype)
        assert_no_tile_goes_through_shared_memory(name, code)
        if axis == -1 and shape[-1] * dtype.itemsize % 16 == 0:
            assert_16_bytes_are_loaded_and_stored_at_a_time(name, code)


def compiled(launches: Launches, names: Collection[str]) -> Iterator[tuple[str, Code]]:
    """Compile the first launch of each kernel with one of these names."""
    first: dict[str, Any] = {}
    for launched, warps in zip(launches.launched, launches.warps, strict=True):
        first.setdefault(launched[0].__name__, (*launched, warps))
    for name, given in first.items():
        if name in names:
            yield name, compile_launch(*given)


# Each kernel that reads a residual or dtotal, for tiles whose registers are nearly all in use.
SUMS = [
    (torch.bfloat16, 4096, -1),
    *((torch.float32, cols, -1) for cols in (7, 65536)),
    *((torch.float32, 128, 1), (torch.bfloat16, 2048, 1), (torch.bfloat16, 32768, 1)),
]


@pytest.mark.parametrize(("dtype", "cols", "axis"), SUMS)
def test_registers_suffice_with_a_residual_too(monkeypatch, dtype, cols, axis) -> None:
    launches = Launches(monkeypatch)
    x = torch.empty((3, cols) if axis == -1 else (3, cols, 5), dtype=dtype)
    parameter, definition = x.new_empty(cols), Definition((axis,), 1e-5)
    y, total, *statistics = gpu_forward.forward(x, parameter, parameter, definition, addend=x)
    given = (y, total, parameter, dtype, definition, [True] * 3, statistics)
    gpu_backward.Backward(*given, dtotal=x).run()
    names = ("forward", "backward", "long_row_sums", "long_row_dx")
    for name, code in compiled(launches, names):
        # of 16 warps a thread has 128 registers, which 2048 channels take up without a residual
        spilled = 32 if (name, cols) == ("forward", 2048) else 0
        assert_no_spills(name, code, dtype, allowed=spilled)
        assert_no_tile_goes_through_shared_memory(name, code)
        if axis == -1 and cols * dtype.itemsize % 16 == 0:
            assert_16_bytes_are_loaded_and_stored_at_a_time(name, code)
            if name == "long_row_sums":
                assert STORE_OF_16_BYTES.search(code.ptx), name
        assert_nothing_is_fused_or_flushed_that_the_source_does_not_say(name, code)


# Each kernel that reads a gate, for tiles whose registers are nearly all in use, and how many bytes
# a thread may spill: with the gate before the norm, and behind it.
GATES = [
    *((torch.bfloat16, cols, -1, (8, 0)) for cols in (64, 4096)),
    (torch.float32, 65536, -1, (0, 0)),
    *((torch.float32, 128, 1, (48, 0)), (torch.bfloat16, 2048, 1, (32, 64))),
]


@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize(("dtype", "cols", "axis", "spilled"), GATES)
def test_registers_suffice_with_a_gate_too(
    monkeypatch, dtype, cols, axis, spilled, norm_before_gate
) -> None:
    launches = Launches(monkeypatch)
    x = torch.empty((3, cols) if axis == -1 else (3, cols, 5), dtype=dtype)
    parameter = x.new_empty(cols)
    definition = Definition((axis,), 1e-5, norm_before_gate=norm_before_gate)
    y, *statistics = gpu_forward.forward(x, parameter, parameter, definition, gate=x)
    given = (y, x, parameter, dtype, definition, [True] * 4, statistics)
    gpu_backward.Backward(*given, gate=x, bias=parameter).run()
    names = ("forward", "backward", "long_row_forward", "long_row_dx", "column_sums")
    for name, code in compiled(launches, names):
        assert_no_spills(name, code, dtype, allowed=spilled[norm_before_gate])
        assert_no_tile_goes_through_shared_memory(name, code)
        if axis == -1 and cols * dtype.itemsize % 16 == 0:
            assert_16_bytes_are_loaded_and_stored_at_a_time(name, code)
        assert_nothing_is_fused_or_flushed_that_the_source_does_not_say(name, code, gated=True)


# Each kernel that quantizes, for tiles whose registers are nearly all in use, and how many bytes a
# thread may spill.
QUANTIZED = [
    (torch.bfloat16, 4096, -1, "int8", None, 0),
    (torch.float32, 7, -1, "float8_e5m2", None, 0),
    (torch.float32, 1024, -1, "float8_e4m3fn", 0.5, 0),
    (torch.float64, 1024, -1, "int8", None, 0),
    (torch.float32, 65536, -1, "int8", None, 0),
    (torch.bfloat16, 32768, 1, "int8", None, 0),
    (torch.bfloat16, 2048, 1, "float8_e4m3fn", None, 32),
]


@pytest.mark.parametrize(("dtype", "cols", "axis", "q_type", "scale", "spilled"), QUANTIZED)
def test_registers_suffice_in_8_bits_too(
    monkeypatch, dtype, cols, axis, q_type, scale, spilled
) -> None:
    launches = Launches(monkeypatch)
    x = torch.empty((3, cols) if axis == -1 else (3, cols, 5), dtype=dtype)
    parameter = x.new_empty(cols)
    given = None if scale is None else torch.tensor(scale)
    definition = Definition((axis,), 1e-5)
    gpu_quantized.quantized(x, parameter, parameter, definition, q_type, given)
    ((name, code),) = compiled(launches, ("forward", "quantize_rows"))
    assert_no_spills(name, code, dtype, allowed=spilled)
    assert_no_tile_goes_through_shared_memory(name, code)
    if axis == -1 and cols * dtype.itemsize % 16 == 0:  # then q is not stored byte by byte
        assert_16_bytes_are_loaded_and_stored_at_a_time("a kernel that stores no y", code)
        assert "st.global.b8" not in code.ptx
    assert_nothing_is_fused_or_flushed_that_the_source_does_not_say(name, code)
    assert "div.full" not in code.ptx


STORE_OF_16_BYTES = re.compile(r"st\.global\S*\.v4\.b32|st\.global\S*\.v2\.b64")


def assert_no_spills(name: str, code: Code, dtype: torch.dtype, *, allowed: int = 0) -> None:
    # the division of float64 calls a subroutine, which takes 8 bytes of stack
    allowed += 8 if dtype == torch.float64 else 0
    assert code.stack <= allowed, (name, code.usage)


def assert_no_tile_goes_through_shared_memory(name: str, code: Code) -> None:
    """A tile takes 8 KB and more, or many barriers, between which a part of it is moved.

    With weight in another layout than x, it once took 64 KB, and statistics 127 barriers.
    """
    names = ("forward", "long_row_forward", "long_row_squares", "long_row_gradient_sums")
    if name in (*names, "long_row_dx", "quantize_rows"):
        assert code.shared <= 4096, name
        assert code.ptx.count("bar.sync") <= 40, name


def assert_16_bytes_are_loaded_and_stored_at_a_time(name: str, code: Code) -> None:
    if name in ("long_row_normalizer", "add_programs"):  # they read no rows
        return
    assert re.search(r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v2\.b64", code.ptx), name
    if name in ("forward", "long_row_forward", "backward", "long_row_dx"):
        assert STORE_OF_16_BYTES.search(code.ptx), name


def assert_the_assembler_keeps_loads_and_stores_of_16_bytes(name: str, code: Code) -> None:
    if name in ("long_row_normalizer", "add_programs"):
        return
    assert re.search(r"LDG\S*\.128", code.sass), name
    assert bool(re.search(r"STG\S*\.128", code.sass)) == bool(STORE_OF_16_BYTES.search(code.ptx))


def assert_nothing_is_fused_or_flushed_that_the_source_does_not_say(
    name: str, code: Code, *, gated: bool = False
) -> None:
    assert ".ftz" not in code.ptx, name
    assert ".approx" not in code.ptx, name
    # no fused operation of float32 belongs into the sums of squares
    if name in ("long_row_sums", "long_row_squares") and not gated:
        assert "fma.rn.f32" not in code.ptx, name
