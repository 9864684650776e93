"""layernorm.jax as a provider."""

from functools import partial
from typing import ClassVar

from layernorm import jax as front_end
from layernorm.cli.problem import Problem
from layernorm.cli.providers.jitted import Function, Jax


class OursJax(Jax):
    """`layernorm.jax`, compiled as its peers are."""

    name: ClassVar[str] = "layernorm"
    distribution: ClassVar[str] = "layernorm"

    def function(self, problem: Problem) -> Function:
        """Return y = f(x, weight, bias); for channels first with `axis`, and no transpose."""
        return partial(front_end.layer_norm, axis=problem.axis, eps=problem.eps)
