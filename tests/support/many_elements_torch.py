"""Checks the forward and the backward of more than 2^31 elements of tensors.

The rows are copies of a few different ones, so the right answer is that of the few.
"""

import torch

import layernorm.torch as ours
from layernorm.torch import operators
from layernorm.torch.arguments import Definition

CHANNELS = 2048
ROWS = (61, CHANNELS)  # 61 is a prime: no block of the kernels is a whole number of copies

torch.manual_seed(0)
WEIGHT = torch.randn(CHANNELS)


def many(few: torch.Tensor) -> torch.Tensor:
    """Repeat the few until there are more than 2^31 elements."""
    times = 2**31 // few.numel() + 1
    return few.expand(times, *few.shape).reshape(-1, *few.shape[1:])


def assert_all_are_copies(few: torch.Tensor, repeated: torch.Tensor) -> None:
    for number, copy in enumerate(repeated.view(-1, *few.shape)):
        assert torch.equal(copy, few), f"copy {number} differs"


def check_forward(few: torch.Tensor, x: torch.Tensor) -> None:
    y = ours.layer_norm(x, (CHANNELS,), WEIGHT)
    assert_all_are_copies(ours.layer_norm(few, (CHANNELS,), WEIGHT), y)


def check_backward(few: torch.Tensor, x: torch.Tensor) -> None:
    definition = Definition((-1,), 1e-5)
    gradients = []
    for each in (few, x):
        statistics = operators.forward(each, WEIGHT, WEIGHT, definition)[1:]
        gradients.append(
            operators.backward(each, each, WEIGHT, WEIGHT, definition, (True,) * 3, statistics)
        )
    few_gradients, (dx, *sums) = gradients
    assert_all_are_copies(few_gradients[0], dx)
    for total, of_few in zip(sums, few_gradients[1:], strict=True):
        # Not the contract's bound: the rounding of the few sums counts as many times.
        terms = 2 * few.numel() / CHANNELS
        torch.testing.assert_close(
            total / (x.numel() / few.numel()), of_few, rtol=1e-5, atol=1e-6 * terms
        )


if __name__ == "__main__":
    few = torch.randn(ROWS).bfloat16() + 1
    x = many(few)
    check_forward(few, x)
    check_backward(few, x)
