"""layernorm.torch as a provider."""

from functools import partial
from typing import Any, ClassVar

import torch

from layernorm import torch as front_end
from layernorm.cli.problem import Array, Problem
from layernorm.cli.providers.provider import Call, Provider
from layernorm.cli.providers.pytorch import array_of, tensors_of
from layernorm.torch import operators
from layernorm.torch.arguments import Definition


class OursTorch(Provider):
    """`layernorm.torch`, called as a user calls it."""

    name: ClassVar[str] = "layernorm"
    distribution: ClassVar[str] = "layernorm"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        torch.set_num_threads(threads)

    def forward(self, problem: Problem, *, reuse_output: bool = False) -> Call:
        """`layer_norm`; for channels first with `axis`, and no permute."""
        self.require(problem, reuse_output=reuse_output, can_reuse=False)
        x, weight, bias, _ = tensors_of(problem)
        axis = problem.axis if problem.is_channels_first else None
        call = partial(front_end.layer_norm, x, (problem.cols,), weight, bias, problem.eps)
        return call if axis is None else partial(call, axis=axis)

    def backward(self, problem: Problem) -> Call:
        """Run what autograd runs, without autograd around it."""
        self.require(problem, can_reuse=False)
        x, weight, bias, dy = tensors_of(problem)
        definition = Definition((problem.axis,), problem.eps)
        _, *statistics = operators.forward(x, weight, bias, definition)
        need = (True, True, True)
        return partial(operators.backward, dy, x, weight, bias, definition, need, statistics)

    def arrays(self, result: Any) -> tuple[Array, ...]:
        """Share the tensors' memory; bfloat16 goes by its bits."""
        tensors = result if isinstance(result, tuple) else (result,)
        return tuple(array_of(each) for each in tensors)
