"""Time the CPU's part of an eager call on a GPU, without a GPU and without the launches.

    python benchmarks/gpu_overhead.py

float32, 64 rows of 768, on CPU tensors in the place of a GPU's; medians in microseconds. The
launches of compiled kernels come on top: one in the forward, two or three in the backward.
"""

import warnings
from unittest import mock

import torch

import layernorm.torch
from layernorm.cli.bench.timing import interleave
from layernorm.cli.problem import ordinary_arrays
from layernorm.torch import functional
from layernorm.torch.gpu import backward as gpu_backward
from layernorm.torch.gpu import forward as gpu_forward
from layernorm.torch.gpu import operators as gpu


def main() -> None:
    warnings.simplefilter("ignore")  # PyTorch warns that a CPU kernel is overridden
    torch.set_num_threads(1)
    *leaves, dy = ordinary_arrays(torch.randn, (64, 768))
    x, weight, bias = (each.requires_grad_() for each in leaves)

    def forward() -> torch.Tensor:
        return layernorm.torch.layer_norm(x, (768,), weight, bias)

    def without_gradient() -> torch.Tensor:
        with torch.no_grad():
            return forward()

    def both() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(forward(), (x, weight, bias), dy)

    with (
        mock.patch.object(functional, "torch_try_forward", return_value=None),  # as for a GPU's
        mock.patch.object(gpu, "BYPASSING_DEVICES", ("cpu",)),
        mock.patch.object(gpu_forward, "launch", nothing),
        mock.patch.object(gpu_backward, "launch", nothing),
    ):
        timings = interleave({"forward": without_gradient, "forward and backward": both})
    for name, timing in timings.items():
        print(f"{name}: {1e6 * timing.median:.0f}")


def nothing(*arguments: object, **constants: object) -> None:
    """Replace a launch."""


if __name__ == "__main__":
    main()
