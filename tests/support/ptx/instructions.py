"""How many instructions of PTX the kernels execute for each element of ordinary rows.

    PYTHONPATH=tests/support python -m ptx.instructions [COLS ...] [--tile 1024 32 1]

--tile: with these rules in the place of those of `launch_config`: the least elements of a tile,
those of a thread, and the least warps of a program.

An H200 issues 33.5e12 instructions of threads a second (132 multiprocessors, 128 a clock, 1.98 GHz)
and copies about 4.3 TB/s. So `limit` estimates how many times as fast as a copy of its useful bytes
a kernel can be. The assembler removes some instructions, and makes several of others.
"""

import argparse
import itertools
from collections import defaultdict
from typing import Any

import torch
from machine_code import MODULES, NAMES, run

from layernorm.torch.gpu.launch import without_none
from layernorm.triton import launch_config
from ptx.launches import compiled
from ptx.threads import kernel_of

OF_A_BYTE = 33.5e12 / 4.3e12  # instructions that are issued while a byte is copied
PASSES = {"forward": 2, "backward": 3}


def executed(dtype: torch.dtype, cols: int) -> dict[str, float]:
    """Return the instructions an element by kernel, of a forward and a backward."""
    counts: dict[str, float] = defaultdict(float)
    x, dy = torch.randn(2, max(2, 2**18 // cols), cols).to(dtype).unbind()

    def launch(kernel: Any, programs: int, arguments: Any, warps: int, **constants: Any) -> None:
        given = without_none(arguments)
        ptx, shared = compiled(kernel, given, warps, constants)
        emulated = kernel_of(ptx)
        before = emulated.executed
        emulated.launch(programs, warps, shared, given)
        counts[kernel.__name__] += (emulated.executed - before) / x.numel()

    for module in MODULES:
        module.launch = launch
    run(x, dy)
    return dict(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cols", type=int, nargs="*", default=[64, 256, 1024, 4096])
    parser.add_argument("--tile", type=int, nargs=3, metavar=("ELEMENTS", "OF_A_THREAD", "WARPS"))
    options = parser.parse_args()
    if options.tile:
        elements, of_a_thread, launch_config._LEAST_WARPS = options.tile
        launch_config._FEW_ELEMENTS = elements
        launch_config._elements_of_a_thread = lambda *given: of_a_thread
    for cols, dtype in itertools.product(options.cols, (torch.bfloat16, torch.float32)):
        for name, count in executed(dtype, cols).items():
            line = f"{NAMES[dtype]} {cols:>6} {name:20} {count:5.1f}"
            if name in PASSES:
                line += f"  limit {PASSES[name] * dtype.itemsize * OF_A_BYTE / count:.2f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
