"""Time PyTorch's norms and ours on tensors, forward and backward, beside a copy of the same bytes.

    python benchmarks/of_a_copy.py [--norm rms_norm] [--threads 1,2] [--cells float32:65536x64,...]

Fresh output, the backward alone, through autograd; interleaved; medians in microseconds. "Of a
copy" is the time of a copy of x divided by ours. The backward moves three arrays where a copy moves
two, and is compared with one and a half copies. A shape of more than two sizes is channels first:
ours takes axis=1, PyTorch's a view with the channels last.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch

import layernorm.torch
from layernorm.cli.bench.timing import Call, interleave
from layernorm.cli.problem import ordinary_arrays

REPEATS = 9
FLOAT32 = "65536x64 32768x128 16384x192 16384x256 512x768 4097x769 256x4096 2048x4096 64x65536"
BFLOAT16 = "65536x64 32768x128 16384x256 512x768 4097x769 4096x1536 64x65536"
CHANNELS_FIRST = "64x64x32x32 8x96x56x56"
CELLS = [
    *(f"float32:{shape}" for shape in FLOAT32.split()),
    *(f"bfloat16:{shape}" for shape in BFLOAT16.split()),
    *(f"{each}:{shape}" for each in ("float32", "bfloat16") for shape in CHANNELS_FIRST.split()),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--norm", choices=("layer_norm", "rms_norm"), default="layer_norm")
    parser.add_argument("--threads", default="1,2", metavar="N,...")
    parser.add_argument("--cells", default=",".join(CELLS), metavar="TYPE:SHAPE,...")
    options = parser.parse_args()
    norms = {
        "own": getattr(torch.nn.functional, options.norm),
        "ours": getattr(layernorm.torch, options.norm),
    }
    print("| threads | x | forward | of a copy | PyTorch | backward | of 1.5 copies | PyTorch |")
    print("|--:|---|--:|--:|--:|--:|--:|--:|")
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        for cell in options.cells.split(","):
            type_name, shape = cell.split(":")
            sizes = tuple(map(int, shape.split("x")))
            forward, backward = times(norms, getattr(torch, type_name), sizes)
            print(
                f"| {threads} | {type_name} {shape} | {columns(forward, copies=1)} "
                f"| {columns(backward, copies=1.5)} |",
                flush=True,
            )


def columns(microseconds: dict[str, float], *, copies: float) -> str:
    ours, faster = microseconds["ours"], microseconds["own"] / microseconds["ours"]
    against = f"{faster:.2f}x" if faster >= 1 else f"**{faster:.2f}x**"
    return f"{ours:,.0f} | {copies * microseconds['copy'] / ours:.2f} | {against}"


def times(
    norms: dict[str, Callable[..., torch.Tensor]], dtype: torch.dtype, sizes: tuple[int, ...]
) -> tuple[dict[str, float], dict[str, float]]:
    """Microseconds of a copy, PyTorch's norm and ours: forward, and backward."""
    axis = 1 if len(sizes) > 2 else -1
    x, *parameters, dy = (
        each.detach().to(dtype) for each in ordinary_arrays(torch.randn, sizes, axis=axis)
    )
    if "rms" in norms["ours"].__name__:
        parameters.pop()  # the bias
    if axis == 1:
        norms = {"own": partial(of_permuted, norms["own"]), "ours": partial(norms["ours"], axis=1)}
    cols = sizes[axis]
    leaves = [x.clone().requires_grad_(), *(each.clone().requires_grad_() for each in parameters)]
    copy = partial(torch.empty_like(x).copy_, x)
    forwards: dict[str, Call] = {"copy": copy}
    backwards: dict[str, Call] = {"copy": copy}
    for name, norm in norms.items():
        y = norm(leaves[0], (cols,), *leaves[1:])
        forwards[name] = partial(norm, x, (cols,), *parameters)
        backwards[name] = partial(torch.autograd.grad, y, leaves, dy, retain_graph=True)
    return medians(forwards), medians(backwards)


def of_permuted(
    norm: Callable[..., torch.Tensor], x: torch.Tensor, *others: object
) -> torch.Tensor:
    return norm(x.movedim(1, -1), *others).movedim(-1, 1)


def medians(calls: dict[str, Call]) -> dict[str, float]:
    found = interleave(calls, repeats=REPEATS)
    return {name: 1e6 * timing.median for name, timing in found.items()}


if __name__ == "__main__":
    main()
