"""layernorm.jax, layernorm.flax and layernorm.equinox as providers."""

from functools import partial
from typing import Any, ClassVar

import jax
import jax.experimental

from layernorm import jax as front_end
from layernorm.cli.problem import Problem
from layernorm.cli.providers.jitted import Equinox, Flax, Function, Jax, Linen
from layernorm.cli.providers.provider import Call

# JAX 0.7 has it in jax.experimental.
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


class OursJax(Jax):
    """`layernorm.jax`, compiled as its peers are; float64 with JAX's x64 mode."""

    name: ClassVar[str] = "layernorm"
    distribution: ClassVar[str] = "layernorm"
    types: ClassVar[tuple[str, ...]] = (*Jax.types, "float64")

    def function(self, problem: Problem) -> Function:
        """Return y = f(x, *parameters); for channels first, `axis` instead of a transpose."""
        return partial(getattr(front_end, problem.kind), axis=problem.axis, eps=problem.eps)

    def forward(self, problem: Problem, *, reuse_output: bool = False) -> Call:
        """Compile y = f(x, *parameters)."""
        if problem.type_name != "float64":
            return super().forward(problem, reuse_output=reuse_output)
        with enable_x64(True):
            return _with_float64(super().forward(problem, reuse_output=reuse_output))

    def backward(self, problem: Problem) -> Call:
        """Compile the second half of jax.vjp, which takes what the forward saved."""
        if problem.type_name != "float64":
            return super().backward(problem)
        with enable_x64(True):
            return _with_float64(super().backward(problem))


class OursFlax(Flax):
    """The layers of `layernorm.flax.nnx`, used as Flax's own."""

    name: ClassVar[str] = "layernorm"
    distribution: ClassVar[str] = "layernorm"
    layers: ClassVar[str] = "layernorm.flax.nnx"


class OursLinen(Linen):
    """The layers of `layernorm.flax.linen`, used as Flax's own."""

    name: ClassVar[str] = "layernorm"
    distribution: ClassVar[str] = "layernorm"
    layers: ClassVar[str] = "layernorm.flax.linen"


class OursEquinox(Equinox):
    """The layers of `layernorm.equinox`, used as Equinox's own."""

    name: ClassVar[str] = "layernorm"
    distribution: ClassVar[str] = "layernorm"
    layers: ClassVar[str] = "layernorm.equinox"


def _with_float64(call: Call) -> Call:
    def run() -> Any:
        with enable_x64(True):
            return call()

    return run
