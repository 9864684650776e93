"""What runs on XLA's CPU backend under jax.jit: a formula in jax.numpy, flax, equinox."""

import importlib
import os
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

from layernorm.cli.problem import Problem
from layernorm.cli.providers.provider import Call, Provider, Unsupported

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

Function = Callable[[Any, Any, Any], Any]

wait_for: Callable[[Any], Any] = jax.block_until_ready


class _Compiled(NamedTuple):
    forward: Function
    forward_saving: Callable[[Any, Any, Any], tuple[Any, Any]]
    backward: Callable[[Any, Any], Any]


class Jax(Provider):
    """Mean, centered variance, scale, shift in jax.numpy; 16-bit types computed in float32."""

    name: ClassVar[str] = "jax"
    distribution: ClassVar[str] = "jax"
    types: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16")

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._compiled: dict[tuple[Any, ...], _Compiled] = {}

    def function(self, problem: Problem) -> Function:
        """Return y = f(x, weight, bias) for arrays of this problem's shapes."""
        return partial(_layer_norm, axis=problem.axis, eps=problem.eps)

    def forward(self, problem: Problem, *, reuse_output: bool = False) -> Call:
        """Compile y = f(x, weight, bias)."""
        self.require(problem, reuse_output=reuse_output, can_reuse=False)
        x, weight, bias, _ = _jax_arrays(problem)
        forward = self._compile(problem).forward
        return lambda: forward(x, weight, bias).block_until_ready()

    def backward(self, problem: Problem) -> Call:
        """Compile the second half of jax.vjp, which takes what the forward saved."""
        self.require(problem, can_reuse=False)
        x, weight, bias, dy = _jax_arrays(problem)
        compiled = self._compile(problem)
        _, saved = compiled.forward_saving(x, weight, bias)
        backward = compiled.backward
        return lambda: wait_for(backward(saved, dy))

    def _compile(self, problem: Problem) -> "_Compiled":
        key = (problem.x.shape, problem.type_name, problem.axis, problem.eps)
        if key not in self._compiled:
            function = self.function(problem)
            self._compiled[key] = _Compiled(
                forward=jax.jit(function),
                forward_saving=jax.jit(partial(jax.vjp, function)),
                backward=jax.jit(lambda saved, dy: saved(dy)),
            )
        return self._compiled[key]


class JaxLayer(Jax):
    """A LayerNorm of the module that `layers` names."""

    layers: ClassVar[str]

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.layer: Any = importlib.import_module(self.layers).LayerNorm


class Flax(JaxLayer):
    """`flax.nnx.LayerNorm` with its defaults, which include `use_fast_variance=True`."""

    name: ClassVar[str] = "flax"
    distribution: ClassVar[str] = "flax"
    layers: ClassVar[str] = "flax.nnx"

    def function(self, problem: Problem) -> Function:
        """Return the layer, split from its parameters."""
        from flax import nnx

        layer = self.layer(problem.cols, **_options_of_flax(problem), rngs=nnx.Rngs(0))
        graph, state = nnx.split(layer)

        def apply(x: Any, weight: Any, bias: Any) -> Any:
            layer = nnx.merge(graph, state)
            layer.scale = nnx.Param(weight)
            layer.bias = nnx.Param(bias)
            return layer(x)

        return apply


class Linen(JaxLayer):
    """`flax.linen.LayerNorm` with its defaults."""

    name: ClassVar[str] = "flax.linen"
    distribution: ClassVar[str] = "flax"
    layers: ClassVar[str] = "flax.linen"

    def function(self, problem: Problem) -> Function:
        """Return the layer, whose parameters are arguments."""
        layer = self.layer(**_options_of_flax(problem))

        def apply(x: Any, weight: Any, bias: Any) -> Any:
            return layer.apply({"params": {"scale": weight, "bias": bias}}, x)

        return apply


class Equinox(JaxLayer):
    """`equinox.nn.LayerNorm`, mapped over the rows with jax.vmap as its documentation says."""

    name: ClassVar[str] = "equinox"
    distribution: ClassVar[str] = "equinox"
    layers: ClassVar[str] = "equinox.nn"

    def function(self, problem: Problem) -> Function:
        """Return the layer for one row, mapped over the rows."""
        if problem.is_channels_first:
            raise Unsupported("equinox normalizes the last axes only")
        import equinox

        layer = self.layer(problem.cols, eps=problem.eps)

        def apply(x: Any, weight: Any, bias: Any) -> Any:
            own = equinox.tree_at(lambda layer: (layer.weight, layer.bias), layer, (weight, bias))
            return jax.vmap(own)(x)

        return apply


def _options_of_flax(problem: Problem) -> dict[str, Any]:
    return {
        "epsilon": problem.eps,
        "dtype": problem.type_name,
        "param_dtype": problem.type_name,
        "reduction_axes": problem.axis,
        "feature_axes": problem.axis,
    }


def _layer_norm(x: Any, weight: Any, bias: Any, *, axis: int, eps: float) -> Any:
    shape = [1] * x.ndim
    shape[axis] = -1
    widened = x.astype(jnp.float32)
    centered = widened - widened.mean(axis, keepdims=True)
    rstd = jax.lax.rsqrt((centered * centered).mean(axis, keepdims=True) + eps)
    weight, bias = (each.astype(jnp.float32).reshape(shape) for each in (weight, bias))
    return (centered * rstd * weight + bias).astype(x.dtype)


def _jax_arrays(problem: Problem) -> tuple[Any, ...]:
    return problem.arrays_of("jax", jnp.asarray)
