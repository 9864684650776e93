"""The kernels as machine code for sm_90, without a GPU: wide loads, and registers that suffice."""

import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from interpreter import INTERPRETED  # noqa: E402
from test_triton_plan import Launches, run  # noqa: E402

if INTERPRETED:
    pytest.skip("compiles, which the interpreter does not", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

NAMES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16"}
NAMES |= {torch.float16: "fp16", torch.int32: "i32"}


def compile_launch(kernel, arguments, constants, warps):
    """Compile what a launch would; return PTX, disassembly, and what the assembler says of it."""
    names = [name for name in kernel.arg_names if name not in constants]
    types = {
        name: f"*{NAMES[given.dtype]}" if isinstance(given, torch.Tensor) else "i64"
        for name, given in zip(names, arguments, strict=True)
    }
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs={})
    options = {"num_warps": warps, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return Code(compiled.asm["ptx"], compiled.asm["cubin"])


class Code:
    def __init__(self, ptx: str, cubin: bytes) -> None:
        self.ptx = ptx
        tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            self.usage = self._tool(tools / "cuobjdump", "-res-usage", file.name)
            self.sass = self._tool(tools / "nvdisasm", file.name)
        self.registers = int(re.search(r"REG:(\d+)", self.usage)[1])
        self.stack = int(re.search(r"STACK:(\d+)", self.usage)[1])

    @staticmethod
    def _tool(*command: object) -> str:
        done = subprocess.run([str(each) for each in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@cache
def codes(dtype: torch.dtype, cols: int, axis: int, centered: bool = True) -> dict[str, Code]:
    """Compile all kernels of a forward and a backward of this width."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        launches = Launches(monkeypatch)
        shape = (3, cols) if axis == -1 else (3, cols, 5)
        x = torch.empty(shape, dtype=dtype)
        run(x, torch.empty_like(x), axis=axis, centered=centered)
    found = {}
    for (kernel, arguments, constants), warps in zip(
        launches.launched, launches.warps, strict=True
    ):
        name = kernel.__name__
        if name in found:
            name += "_again"
        found[name] = compile_launch(kernel, arguments, constants, warps)
    return found


# Some of each way through the plan.
PLANS = [
    *((torch.bfloat16, cols, -1) for cols in (256, 4096, 16384)),
    *((torch.float32, cols, -1) for cols in (769, 1024, 8192, 65536)),
    *((torch.float32, 96, 1), (torch.bfloat16, 512, 1), (torch.float64, 1024, -1)),
]


@pytest.mark.parametrize(("dtype", "cols", "axis"), PLANS)
def test_no_kernel_spills(dtype, cols, axis) -> None:
    for name, code in codes(dtype, cols, axis).items():
        # float64: its division calls a subroutine, for which 8 bytes are put aside
        allowed = 8 if dtype == torch.float64 else 0
        assert code.stack <= allowed, (name, code.usage)


@pytest.mark.parametrize(
    ("dtype", "cols", "axis"), [p for p in PLANS if p[1] != 769 and p[2] == -1]
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
