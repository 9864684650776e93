"""The kernels as machine code for sm_90, without a GPU.

    python tests/support/machine_code.py [COLS ...]

prints warps, registers, stack (spills), shared memory and the largest load of each kernel.
"""

import re
import subprocess
import sys
import tempfile
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from layernorm.torch.arguments import Definition
from layernorm.torch.gpu import backward as gpu_backward
from layernorm.torch.gpu import forward as gpu_forward
from layernorm.torch.gpu import long_rows as gpu_long_rows
from layernorm.torch.gpu import quantized as gpu_quantized
from layernorm.torch.gpu.launch import without_none

MODULES = (gpu_forward, gpu_backward, gpu_long_rows, gpu_quantized)  # that launch kernels

NAMES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16"}
NAMES |= {torch.float16: "fp16", torch.int32: "i32", torch.int8: "i8"}


class Launches:
    """Replaces `launch`, and records what would be compiled and launched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compiled, self.launched, self.warps = set(), [], []
        for module in MODULES:
            monkeypatch.setattr(module, "launch", self)

    def __call__(self, kernel, programs, arguments, warps, **constants) -> None:
        arguments = without_none(arguments)
        # the compiled kernel gets both as positional arguments
        assert list(constants) == kernel.arg_names[len(arguments) :]
        types = tuple(given.dtype for given in arguments if isinstance(given, torch.Tensor))
        key = (kernel.__name__, types, warps, *constants.items())
        self.compiled.add(key)
        self.launched.append((kernel, arguments, constants))
        self.warps.append(warps)


def run(x, dy, *, axis=-1, centered=True, parameter_type=None) -> None:
    """Launch a forward and a backward."""
    definition = Definition((axis,), 1e-5, centered)
    weight = x.new_ones(x.shape[axis], dtype=parameter_type)
    bias = weight if centered else None
    y, mean, rstd, residual = gpu_forward.forward(x, weight, bias, definition)
    assert y.shape == x.shape
    given = (dy, x, weight, weight.dtype, definition, [True] * 3, (mean, rstd, residual))
    gpu_backward.Backward(*given).run()


def compile_launch(kernel, arguments, constants, warps) -> "Code":
    """Compile the kernel as a launch would."""
    compiled = compiled_launch(kernel, arguments, constants, warps)
    return Code(compiled.asm["ptx"], compiled.asm["cubin"], warps, compiled.metadata.shared)


def compiled_launch(kernel, arguments, constants, warps) -> Any:
    """Return what Triton compiles."""
    names = [name for name in kernel.arg_names if name not in constants]
    types = {
        name: f"*{NAMES[given.dtype]}" if isinstance(given, torch.Tensor) else "i64"
        for name, given in zip(names, arguments, strict=True)
    }
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs={})
    options = {"num_warps": warps, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


class Code:
    """PTX, disassembly and the resources that the assembler reports."""

    def __init__(self, ptx: str, cubin: bytes, warps: int, shared: int) -> None:
        self.ptx, self.warps, self.shared = ptx, warps, shared
        self._cubin = cubin
        self.usage = self._tool("cuobjdump", "-res-usage")
        self.registers = int(re.search(r"REG:(\d+)", self.usage)[1])
        self.stack = int(re.search(r"STACK:(\d+)", self.usage)[1])

    @cached_property
    def sass(self) -> str:
        """The disassembly, which takes as long as compiling does."""
        return self._tool("nvdisasm", "--no-dataflow", "--print-code")

    @property
    def largest_load(self) -> int:
        """In bits."""
        return max((int(bits) for bits in re.findall(r"LDG\S*\.(64|128)", self.sass)), default=32)

    def _tool(self, name: str, *options: str) -> str:
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self._cubin)
            file.flush()
            done = subprocess.run([tool, *options, file.name], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@cache
def codes(
    dtype: torch.dtype, cols: int, axis: int, centered: bool = True, parameter_type=None
) -> dict[str, Code]:
    """Compile all kernels of a forward and a backward of rows of this length."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        launches = Launches(monkeypatch)
        shape = (3, cols) if axis == -1 else (3, cols, 5)
        x = torch.empty(shape, dtype=dtype)
        run(
            x,
            torch.empty_like(x),
            axis=axis,
            centered=centered,
            parameter_type=parameter_type,
        )
    found = {}
    for (kernel, arguments, constants), warps in zip(
        launches.launched, launches.warps, strict=True
    ):
        name = kernel.__name__
        if name in found:
            name += "_again"
        found[name] = compile_launch(kernel, arguments, constants, warps)
    return found


def main() -> None:
    for cols in [int(each) for each in sys.argv[1:]] or [64, 1024, 4096, 16384, 65536]:
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            for axis in (-1, 1):
                layout = "rows" if axis == -1 else "channels first"
                for name, code in codes(dtype, cols, axis).items():
                    print(
                        f"{NAMES[dtype]} {cols:>7} {layout:14} {name:20} warps {code.warps:2} "
                        f"registers {code.registers:3} stack {code.stack:3} "
                        f"shared {code.shared:5} load {code.largest_load:3}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
