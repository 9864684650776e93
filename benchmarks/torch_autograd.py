"""Time PyTorch's forward and backward through autograd, with its own norm and with ours.

    python benchmarks/torch_autograd.py [--norm rms_norm] [--threads 1,2] [--rows 1,21,64,512]

float32, rows of 768, all gradients, interleaved; medians in microseconds. For few rows these are
times of autograd itself.
"""

import argparse
from collections.abc import Callable

import torch

import layernorm.torch
from layernorm.cli.bench.timing import Call, interleave
from layernorm.cli.problem import ordinary_arrays

COLS = 768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--norm", choices=("layer_norm", "rms_norm"), default="layer_norm")
    parser.add_argument("--threads", default="1,2", metavar="N,...")
    parser.add_argument("--rows", default="1,21,32,43,64,128,512", metavar="N,...")
    options = parser.parse_args()
    print("| threads | rows | no gradient, PyTorch | ours | | with backward, PyTorch | ours | |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|")
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        for rows in map(int, options.rows.split(",")):
            norms = [getattr(each, options.norm) for each in (torch.nn.functional, layernorm.torch)]
            forwards, boths = zip(*[calls(norm, rows) for norm in norms], strict=True)
            with torch.no_grad():
                own, ours = medians(*forwards)
            own_both, ours_both = medians(*boths)
            print(
                f"| {threads} | {rows} | {own:.1f} | {ours:.1f} | {own / ours:.2f}x "
                f"| {own_both:.1f} | {ours_both:.1f} | {own_both / ours_both:.2f}x |"
            )


def calls(norm: Callable[..., torch.Tensor], rows: int) -> tuple[Call, Call]:
    """Forward alone; forward and backward."""
    *leaves, dy = ordinary_arrays(torch.randn, (rows, COLS))
    x, *parameters = (each.requires_grad_() for each in leaves)
    if "rms" in norm.__name__:
        parameters.pop()  # the bias

    def forward() -> torch.Tensor:
        return norm(x, (COLS,), *parameters)

    return forward, lambda: torch.autograd.grad(forward(), (x, *parameters), dy)


def medians(own: Call, ours: Call) -> tuple[float, float]:
    """Microseconds a call."""
    times = interleave({"own": own, "ours": ours})
    return 1e6 * times["own"].median, 1e6 * times["ours"].median


if __name__ == "__main__":
    main()
