"""layernorm.numpy as a provider."""

from functools import partial
from typing import ClassVar

import numpy as np

import layernorm
from layernorm import numpy as front_end
from layernorm.cli.problem import Problem
from layernorm.cli.providers.provider import Call, Provider


class Ours(Provider):
    """`layernorm.numpy`, called as a user calls it."""

    name: ClassVar[str] = "layernorm"
    distribution: ClassVar[str] = "layernorm"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        layernorm.set_num_threads(threads)

    def forward(self, problem: Problem, *, reuse_output: bool = False) -> Call:
        """`layer_norm` or `rms_norm`, with `out` if the output is reused."""
        return partial(
            getattr(front_end, problem.kind),
            problem.x,
            *problem.parameters,
            axis=problem.axis,
            eps=problem.eps,
            out=np.empty_like(problem.x) if reuse_output else None,
        )

    def backward(self, problem: Problem) -> Call:
        """`layer_norm_backward`, with the statistics of a `layer_norm_forward`; or RMS norm's."""
        forward = getattr(front_end, f"{problem.kind}_forward")
        backward = getattr(front_end, f"{problem.kind}_backward")
        _, stats = forward(problem.x, *problem.parameters, axis=problem.axis, eps=problem.eps)
        return partial(backward, problem.dy, problem.x, stats, problem.weight)
