"""The emulator of PTX, judged by what PTX documents, and by faults that it must find."""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from ptx.launches import compiled  # noqa: E402
from ptx.memory import PtxError, Race, RaceInWarp, SharedMemory  # noqa: E402
from ptx.threads import Kernel  # noqa: E402

from layernorm.triton.sums import add_programs  # noqa: E402

# NumPy's, where numbers leave the range of their type
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def test_a_kernel_without_any_one_of_its_barriers_races() -> None:
    sums = torch.randn(40, 64, dtype=torch.float64)
    to = torch.empty(64, dtype=torch.float32)
    constants = {"COLS": 64, "NEED_DWEIGHT": True, "NEED_DBIAS": True, "ROWS": 16, "BLOCK": 64}
    given = [sums, sums, to, to.clone(), 40]
    ptx, shared = compiled(add_programs, given, 4, constants)
    Kernel(ptx).launch(1, 4, shared, given)
    np.testing.assert_allclose(to, sums.sum(0), rtol=1e-6)
    before, *parts = ptx.split("bar.sync")
    assert len(parts) > 5
    for place in range(len(parts)):
        kept = [before, *(f"bar.sync{each}" for each in parts)]
        kept[place + 1] = parts[place].partition(";")[2]
        with pytest.raises((Race, RaceInWarp)):
            Kernel("".join(kept)).launch(1, 4, shared, given)


def entry(body: str, parameters: int, threads: int) -> Kernel:
    names = ", ".join(f".param .u64 f_param_{index}" for index in range(parameters))
    declared = "".join(
        f".reg .{kind} %{prefix}<40>;\n"
        for prefix, kind in (("p", "pred"), ("h", "b16"), ("r", "b32"), ("d", "b64"))
    )
    loads = "".join(f"ld.param.b64 %d{index}, [f_param_{index}];\n" for index in range(parameters))
    start = "mov.u32 %r0, %tid.x;\nmul.wide.u32 %d30, %r0, 4;\n"
    return Kernel(f".visible .entry f({names})\n.reqntid {threads}\n{{\n{declared}{loads}{start}"
                  f"{body}\nret;\n}}\n")  # fmt: skip


def run(body: str, *tensors: torch.Tensor, threads: int = 64, shared: int = 1024) -> None:
    """Run one program; %d0, %d1, ... are the tensors, %r0 the thread, and %d30 is 4 * %r0."""
    entry(body, len(tensors), threads).launch(1, threads // 32, shared, tensors)


def result_of(instruction: str, operands: Sequence[Any], size: int) -> int:
    """Return the bits of a result of `size` bytes: {o} is its register, {a}, {b}, {c} the operands.

    The operands are NumPy scalars, whose bits the registers get.
    """
    given = [np.asarray(each).reshape(1) for each in operands]
    prefixes = [{2: "%h", 4: "%r", 8: "%d"}[each] for each in (size, *(v.itemsize for v in given))]
    names = {
        name: f"{prefix}{20 + at}"
        for at, (name, prefix) in enumerate(zip("oabc", prefixes, strict=False))
    }
    tensors = [torch.zeros(1, dtype=torch.int64)]
    tensors += [torch.from_numpy(each.view(f"i{each.itemsize}").copy()) for each in given]
    body = "".join(
        f"ld.global.b{8 * each.itemsize} {names[name]}, [%d{at}];\n"
        for at, (name, each) in enumerate(zip("abc", given, strict=False), start=1)
    )
    body += instruction.format(**names) + ";\nsetp.eq.b32 %p9, %r0, 0;\n"
    run(f"{body}@%p9 st.global.b{8 * size} [%d0], {names['o']};", *tensors, threads=32)
    return int(tensors[0]) % 2 ** (8 * size)


def f32(value: float) -> np.float32:
    return np.float32(value)


NAN = f32(np.nan)
BITS_OF_NAN = 0x7FFFFFFF

RESULTS = [
    # rounded to float64 first, it would be a tie, and then 1 + 2^-22
    (
        "fma.rn.f32 {o}, {a}, {b}, {c}",
        (f32(1 + 2**-23), f32((1 - 2**-23) * 2**-24), f32(1 + 2**-23)),
        f32(1 + 2**-23),
    ),
    ("fma.rn.f64 {o}, {a}, {b}, {c}", (1 + 2**-52, 1 - 2**-52, -1.0), np.float64(-(2.0**-104))),
    ("fma.rn.f64 {o}, {a}, {b}, {c}", (2.0**1023, 2.0, -(2.0**1023)), np.float64(2.0**1023)),
    ("fma.rn.f32 {o}, {a}, {b}, {c}", (f32(2**127), f32(2), f32(-(2.0**127))), f32(2**127)),
    ("fma.rn.f32 {o}, {a}, {b}, {c}", (f32(2**-75), f32(2**-75), f32(2**-149)), f32(2**-148)),
    ("cvt.rn.bf16.f32 {o}, {a}", (f32(1 + 2**-8),), np.uint16(0x3F80)),
    ("cvt.rn.bf16.f32 {o}, {a}", (f32(1 + 3 * 2**-8),), np.uint16(0x3F82)),
    ("cvt.rn.bf16.f32 {o}, {a}", (np.finfo("f4").max,), np.uint16(0x7F80)),
    ("cvt.rn.bf16.f32 {o}, {a}", (np.uint32(0x7F800001),), np.uint16(0x7FFF)),
    ("cvt.rn.bf16x2.f32 {o}, {a}, {b}", (f32(1), f32(-2)), np.uint32(0x3F80C000)),
    # a tie, and just above one
    ("add.rn.bf16 {o}, {a}, {b}", (np.uint16(0x3F81), np.uint16(0x3B80)), np.uint16(0x3F82)),
    ("add.rn.bf16 {o}, {a}, {b}", (np.uint16(0x3F80), np.uint16(0x3B81)), np.uint16(0x3F81)),
    ("add.rn.f16x2 {o}, {a}, {b}", (np.uint32(0x3C004000), np.uint32(0x3C00C000)),
     np.uint32(0x40000000)),
    ("cvt.rn.f16.f32 {o}, {a}", (f32(65520),), np.uint16(0x7C00)),
    ("cvt.rn.f32.f64 {o}, {a}", (1 + 3 * 2.0**-24,), f32(1 + 2**-22)),
    ("cvt.rn.f32.s32 {o}, {a}", (np.int32(2**24 + 1),), f32(2**24)),
    ("cvt.f64.bf16 {o}, {a}", (np.uint16(0xBFC0),), np.float64(-1.5)),
    ("cvt.s64.s32 {o}, {a}", (np.int32(-5),), np.int64(-5)),
    ("cvt.u64.u32 {o}, {a}", (np.int32(-5),), np.int64(2**32 - 5)),
    ("max.f32 {o}, {a}, {b}", (NAN, f32(1)), f32(1)),
    ("max.f32 {o}, {a}, {b}", (NAN, NAN), np.uint32(BITS_OF_NAN)),
    ("max.f32 {o}, {a}, {b}", (f32(-0.0), f32(0.0)), f32(0.0)),
    ("min.f32 {o}, {a}, {b}", (f32(0.0), f32(-0.0)), f32(-0.0)),
    ("max.bf16 {o}, {a}, {b}", (np.uint16(0xFFC0), np.uint16(0xBF80)), np.uint16(0xBF80)),
    ("max.relu.s32 {o}, {a}, {b}", (np.int32(-3), np.int32(-2)), np.int32(0)),
    ("shl.b32 {o}, {a}, {b}", (np.int32(1), np.int32(32)), np.int32(0)),
    ("shr.u32 {o}, {a}, {b}", (np.int32(-1), np.int32(33)), np.int32(0)),
    ("shr.s32 {o}, {a}, {b}", (np.int32(-8), np.int32(64)), np.int32(-1)),
    ("shl.b64 {o}, {a}, {b}", (np.int64(1), np.int32(63)), np.int64(-(2**63))),
    ("bfe.s32 {o}, {a}, 4, 3", (np.int32(0x7F),), np.int32(-1)),
    ("bfe.s32 {o}, {a}, 28, 8", (np.int32(-(2**31)),), np.int32(-8)),
    ("bfe.s32 {o}, {a}, 4, 0", (np.int32(-1),), np.int32(0)),
    ("bfe.u32 {o}, {a}, 28, 8", (np.int32(-1),), np.int32(15)),
    ("bfe.u32 {o}, {a}, 32, 4", (np.int32(-1),), np.int32(0)),
    ("prmt.b32 {o}, {a}, {b}, 0x5410", (np.int32(0x22221111), np.int32(0x44443333)),
     np.int32(0x33331111)),
    ("prmt.b32 {o}, {a}, {b}, 0x8F70", (np.int32(0x00000080), np.int32(0x7F000000)),
     np.uint32(0xFF007F80)),
    ("mul.hi.u32 {o}, {a}, {b}", (np.int32(-1), np.int32(-1)), np.int32(-2)),
    ("mul.wide.u32 {o}, {a}, {b}", (np.int32(-3), np.int32(2)), np.int64(2**33 - 6)),
    ("div.s64 {o}, {a}, {b}", (np.int64(-7), np.int64(2)), np.int64(-3)),
    ("rem.s64 {o}, {a}, {b}", (np.int64(-7), np.int64(2)), np.int64(-1)),
    ("abs.f16x2 {o}, {a}", (np.uint32(0xBC00C000),), np.uint32(0x3C004000)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("instruction", "operands", "expected"),
    RESULTS,
    ids=[f"{place}-{each[0].split()[0]}" for place, each in enumerate(RESULTS)],
)
def test_an_instruction_gives_the_bits_of_ptx(instruction, operands, expected) -> None:
    bits = int(np.asarray(expected).reshape(1).view(f"u{expected.itemsize}")[0])
    assert result_of(instruction, operands, expected.itemsize) == bits


@pytest.mark.parametrize(
    ("comparison", "of_numbers", "of_nan"),
    [("lt", 1, 0), ("ltu", 1, 1), ("ge", 0, 0), ("geu", 0, 1), ("ne", 1, 0), ("neu", 1, 1),
     ("eq", 0, 0), ("num", 1, 0), ("nan", 0, 1)],
)  # fmt: skip
def test_comparisons_with_nan(comparison, of_numbers, of_nan) -> None:
    for b, expected in ((f32(2), of_numbers), (NAN, of_nan)):
        compare = f"setp.{comparison}.f32 %p1, {{a}}, {{b}}"
        assert result_of(f"{compare};\nselp.b32 {{o}}, 1, 0, %p1", [f32(1), b], 4) == expected


def test_fma_rounds_once() -> None:
    rng = np.random.default_rng(0)
    exponents = rng.integers(-90, 90, (3, 64))
    a, b, c = (rng.normal(size=(3, 64)) * 2.0**exponents).astype(np.float32)
    c[::2] = (-a.astype(np.float64) * b).clip(-1e38, 1e38)[::2]  # cancels
    a[:8] *= f32(2.0**-60)  # subnormal
    a[8:] = np.where(abs(a.astype(np.float64) * b) < 1e38, a, 1)[8:]
    tensors = [torch.from_numpy(each.copy()) for each in (np.zeros(64, np.float32), a, b, c)]
    places = "".join(f"add.s64 %d{10 + each}, %d{each}, %d30;\n" for each in range(4))
    loads = "".join(f"ld.global.b32 %r{each}, [%d{10 + each}];\n" for each in (1, 2, 3))
    run(f"{places}{loads}fma.rn.f32 %r4, %r1, %r2, %r3;\nst.global.b32 [%d10], %r4;", *tensors)
    for got, *given in zip(tensors[0].tolist(), a, b, c, strict=True):
        x, y, z = (Fraction(float(each)) for each in given)
        assert abs(Fraction(got) - (x * y + z)) <= Fraction(float(np.spacing(f32(abs(got))))) / 2


def test_threads_that_branch_apart_meet_again() -> None:
    counts = torch.zeros(64, dtype=torch.int32)
    # each thread takes as many turns as its number, then reads its neighbor's count
    body = """
    mov.b32 %r1, 0;
    $again:
    setp.ge.u32 %p1, %r1, %r0;
    @%p1 bra $done;
    add.s32 %r1, %r1, 1;
    bra.uni $again;
    $done:
    shfl.sync.bfly.b32 %r2, %r1, 1, 31, -1;
    add.s64 %d10, %d0, %d30;
    st.global.b32 [%d10], %r2;
    """
    run(body, counts)
    assert counts.tolist() == [number ^ 1 for number in range(64)]


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("shfl.sync.bfly.b32 %r2, %r1, 5, 31, -1", lambda number: -(number ^ 5)),
        ("shfl.sync.idx.b32 %r2, %r1, 3, 31, -1", lambda number: -(number // 32 * 32 + 3)),
        ("shfl.sync.idx.b32 %r2, %r1, %r3, 31, -1",
         lambda number: -(number // 32 * 32 + 7 * number % 32)),
        ("redux.sync.max.s32 %r2, %r1, %r4", lambda number: -(number // 32 * 32)),
        # 0, the largest signed number of the first warp, is its smallest unsigned number
        ("redux.sync.max.u32 %r2, %r1, %r4", lambda number: -max(1, number // 32 * 32)),
    ],
)  # fmt: skip
def test_threads_of_a_warp_exchange_registers(instruction, expected) -> None:
    results = torch.zeros(64, dtype=torch.int32)
    start = "neg.s32 %r1, %r0;\nmul.lo.s32 %r3, %r0, 7;\nmov.b32 %r4, -1;\n"
    run(f"{start}{instruction};\nadd.s64 %d10, %d0, %d30;\nst.global.b32 [%d10], %r2;", results)
    assert results.tolist() == [expected(number) for number in range(64)]


# Matrices of 8 rows of 8 elements of 16 bits, stored by rows: 0, 1, ..., 63, then 64, ...
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(
    ("form", "expected"),
    [("", lambda lane: 2 * lane), (".trans", lambda lane: 16 * (lane % 4) + lane // 4)],
)
def test_matrices_are_loaded_as_ptx_lays_them_out(form, expected, count) -> None:
    results = torch.zeros(count, 32, dtype=torch.int32)
    registers = ", ".join(f"%r{20 + matrix}" for matrix in range(count))
    # each thread stores a row; those of a matrix are apart by 4 rows
    body = f"""
    mov.b32 %r1, global_smem;
    mad.lo.s32 %r4, %r0, 524296, 65536;
    add.s32 %r5, %r4, 131074;
    add.s32 %r6, %r5, 131074;
    add.s32 %r7, %r6, 131074;
    and.b32 %r8, %r0, 7;
    shl.b32 %r8, %r8, 2;
    shr.u32 %r9, %r0, 3;
    add.s32 %r8, %r8, %r9;
    mad.lo.s32 %r3, %r8, 16, %r1;
    st.shared.v4.b32 [%r3], {{%r4, %r5, %r6, %r7}};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x{count}{form}.shared.b16 {{{registers}}}, [%r3];
    add.s64 %d10, %d0, %d30;
    """
    body += "".join(f"st.global.b32 [%d10+{128 * m}], %r{20 + m};\n" for m in range(count))
    run(body, results, threads=32)
    step = 8 if form else 1  # to the other half
    low = [64 * matrix + expected(lane) for matrix in range(count) for lane in range(32)]
    assert results.flatten().tolist() == [each | (each + step) << 16 for each in low]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_are_stored_as_ptx_lays_them_out(count) -> None:
    results = torch.zeros(count, 8, 4, dtype=torch.int32)
    # each thread has two elements of each matrix, and the place of a row: row r is stored at r ^ 3
    body = """
    mov.b32 %r1, global_smem;
    shl.b32 %r2, %r0, 2;
    add.s32 %r3, %r1, %r2;
    mad.lo.s32 %r20, %r0, 131074, 65536;
    add.s32 %r21, %r20, 4194368;
    add.s32 %r22, %r21, 4194368;
    add.s32 %r23, %r22, 4194368;
    xor.b32 %r4, %r0, 3;
    mad.lo.s32 %r5, %r4, 16, %r1;
    """
    registers = ", ".join(f"%r{20 + matrix}" for matrix in range(count))
    body += f"stmatrix.sync.aligned.m8n8.x{count}.shared.b16 [%r5], {{{registers}}};\nbar.sync 0;\n"
    body += "add.s64 %d10, %d0, %d30;\n" + "".join(
        f"ld.shared.b32 %r10, [%r3+{128 * matrix}];\nst.global.b32 [%d10+{128 * matrix}], %r10;\n"
        for matrix in range(count)
    )
    run(body, results, threads=32)
    pairs = torch.arange(64 * count, dtype=torch.int32).reshape(count, 8, 4, 2)
    by_rows = pairs[..., 0] | pairs[..., 1] << 16
    assert torch.equal(results, by_rows[:, [row ^ 3 for row in range(8)]])


# Each thread stores its number, and reads that of another.
EXCHANGE = """
mov.b32 %r1, global_smem;
shl.b32 %r2, %r0, 2;
add.s32 %r3, %r1, %r2;
st.shared.b32 [%r3], %r0;
{between}
xor.b32 %r4, %r2, {distance};
add.s32 %r5, %r1, %r4;
ld.shared.b32 %r6, [%r5];
add.s64 %d10, %d0, %d30;
st.global.b32 [%d10], %r6;
"""


@pytest.mark.parametrize(
    ("between", "distance", "error"),
    [
        *(("", 128, Race), ("bar.warp.sync -1;", 128, Race), ("bar.sync 0;", 128, None)),
        *(("", 4, RaceInWarp), ("bar.warp.sync -1;", 4, None), ("bar.sync 0;", 4, None)),
        ("", 0, None),
    ],
)
def test_a_race_is_found(between, distance, error) -> None:
    results = torch.zeros(64, dtype=torch.int32)
    body = EXCHANGE.format(between=between, distance=distance)
    if error is not None:
        with pytest.raises(error, match="byte"):
            run(body, results)
    else:
        run(body, results)
        assert results.tolist() == [number ^ distance // 4 for number in range(64)]


# Two warps store a number of each thread to the same places.
@pytest.mark.parametrize(
    ("numbers", "races"),
    [("and.b32 %r2, %r0, 31;", False), ("xor.b32 %r2, %r0, -1;", True), ("neg.s32 %r2, 1;", False)],
)
def test_a_race_of_two_writes_needs_different_bits(numbers, races) -> None:
    body = f"""
    {numbers}
    mov.b32 %r1, global_smem;
    and.b32 %r3, %r0, 31;
    mad.lo.s32 %r4, %r3, 4, %r1;
    st.shared.b32 [%r4], %r2;
    """
    if races:
        with pytest.raises(Race, match="written by"):
            run(body)
    else:
        run(body)


@pytest.mark.parametrize(
    "sums",
    [
        "add.rn.f32 %r3, %r1, %r2;\nadd.rn.f32 %r4, %r2, %r1;",
        "mul.rn.f32 %r3, %r1, %r2;\nmul.rn.f32 %r4, %r2, %r1;",
        "fma.rn.f32 %r3, %r1, %r2, %r2;\nfma.rn.f32 %r4, %r2, %r1, %r1;",
        "add.rn.f16x2 %r3, %r1, %r2;\nadd.rn.f16x2 %r4, %r2, %r1;",
        "mov.b64 %d1, {%r1, %r1};\nmov.b64 %d2, {%r2, %r2};\nadd.rn.f64 %d3, %d1, %d2;\n"
        "add.rn.f64 %d4, %d2, %d1;\nmov.b64 {%r3, _}, %d3;\nmov.b64 {%r4, _}, %d4;",
    ],
)
def test_a_sum_of_two_nans_has_the_same_bits_in_either_order(sums) -> None:
    results = torch.zeros(2, dtype=torch.int32)
    nans = "mov.b32 %r1, 0x7FF17FF1;\nmov.b32 %r2, 0xFFF2FFF2;"
    store = "setp.eq.b32 %p1, %r0, 0;\n@%p1 st.global.v2.b32 [%d0], {%r3, %r4};"
    run(f"{nans}\n{sums}\n{store}", results)
    assert results[0] == results[1]


STORE_ALL = "add.s64 %d10, %d0, %d30;\nst.global.b32 [%d10], %r0;"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"{STORE_ALL}\nst.global.b32 [%d10+4], %r0;", "outside all tensors"),
        ("ld.global.b32 %r1, [%d0+-4];", "outside all tensors"),
        ("ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%d0+8];", "multiple of 16"),
        ("ld.global.v2.b32 {%r1, %r2}, [%d0+4];", "multiple of 8"),
        ("mov.b32 %r1, global_smem;\nst.shared.b32 [%r1+1024], %r0;", "outside the 1024 bytes"),
        ("mov.b32 %r1, global_smem;\nld.shared.b32 %r2, [%r1];", "never written"),
        ("mov.b32 %r1, global_smem;\nst.shared.v2.b32 [%r1+4], {%r0, %r0};", "multiple of 8"),
        ("st.global.b32 [%d0], %r0;", "two threads write"),
        ("setp.eq.u32 %p1, %r0, 0;\n@%p1 add.s32 %r2, %r0, 1;\n@%p1 bra $end;\nbar.sync 0;\n"
         "bra.uni $after;\n$end:\nbar.sync 0;\n$after:", "wait for others"),
        ("add.s32 %r1, %r2, %r0;", "register %r2 is never written"),
        ("@%p1 bra $end;\n$end:", "register %p1 is never written"),
        ("add.s32 %r1, %r0, 1;\nadd.s32 %r3, %r1, %r2;\nmov.b32 %r2, %r3;",
         r"add.s32 %r3, %r1, %r2 \(instruction 4\): register %r2 is read and was never written"),
        ("mov.b32 %r1, %r2;\nmov.b32 %r2, %r1;", "register %r2 is read and was never written"),
        ("@%p1 bra $end;\nsetp.eq.u32 %p1, %r0, 0;\n$end:", "register %p1 is read and was never"),
    ],
)  # fmt: skip
def test_what_a_gpu_does_wrong_is_an_error(body, message) -> None:
    tensor = torch.zeros(64 + 4, dtype=torch.int32)
    start = -(tensor.data_ptr() // 4) % 4  # at a multiple of 16 bytes
    with pytest.raises(PtxError, match=message):
        run(body, tensor[start:][:64])


def test_a_fault_of_the_emulator_is_not_one_of_a_kernel(monkeypatch) -> None:
    monkeypatch.setattr(SharedMemory, "barrier", lambda: None)
    with pytest.raises(TypeError):
        run("bar.sync 0;")


@pytest.mark.parametrize(
    "instruction",
    [
        "tanh.approx.f32 %r1, %r0",
        "add.rz.f32 %r1, %r0, %r0",
        "cvt.rzi.s32.f32 %r1, %r0",
        "cvt.rn.satfinite.f16.f32 %h1, %r0",
        "max.NaN.f32 %r1, %r0, %r0",
        "mul.hi.s32 %r1, %r0, %r0",
        "setp.lt.and.s32 %p1, %r0, %r0, %p1",
        "shfl.sync.up.b32 %r1, %r0, 1, 0, -1",
        "redux.sync.add.s32 %r1, %r0, %r0",
        "ld.relaxed.global.b32 %r1, [%d0]",
        "stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%r0], {%r1}",
        "bar.sync 1",
    ],
)
def test_an_unknown_instruction_is_named(instruction) -> None:
    with pytest.raises(NotImplementedError, match=re.escape(instruction)):
        run(f"{instruction};", torch.zeros(64))


def test_a_partial_write_of_a_tensor_with_gaps_is_an_error() -> None:
    every_other = torch.zeros(128, dtype=torch.int32)[::2]
    with pytest.raises(PtxError, match="between the elements"):
        run(STORE_ALL, every_other)
