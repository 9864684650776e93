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

Function = Callable[..., Any]

NAMES_IN_FLAX = ("scale", "bias")

wait_for: Callable[[Any], Any] = jax.block_until_ready


class _Compiled(NamedTuple):
    forward: Function
    forward_saving: Callable[..., tuple[Any, Any]]
    backward: Callable[[Any, Any], Any]


class Jax(Provider):
    """The formula of the norm in jax.numpy; 16-bit types computed in float32."""

    name: ClassVar[str] = "jax"
    distribution: ClassVar[str] = "jax"
    types: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16")

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._compiled: dict[tuple[Any, ...], _Compiled] = {}

    def function(self, problem: Problem) -> Function:
        """Return y = f(x, *parameters) for arrays of this problem's shapes."""
        formula = _layer_norm if problem.kind == "layer_norm" else _rms_norm
        return partial(formula, axis=problem.axis, eps=problem.eps)

    def forward(self, problem: Problem, *, reuse_output: bool = False) -> Call:
        """Compile y = f(x, *parameters)."""
        self.require(problem, reuse_output=reuse_output, can_reuse=False)
        *inputs, _ = _jax_arrays(problem)
        forward = self._compile(problem).forward
        return lambda: forward(*inputs).block_until_ready()

    def backward(self, problem: Problem) -> Call:
        """Compile the second half of jax.vjp, which takes what the forward saved."""
        self.require(problem, can_reuse=False)
        *inputs, dy = _jax_arrays(problem)
        compiled = self._compile(problem)
        _, saved = compiled.forward_saving(*inputs)
        backward = compiled.backward
        return lambda: wait_for(backward(saved, dy))

    def _compile(self, problem: Problem) -> "_Compiled":
        key = (problem.x.shape, problem.type_name, problem.axis, problem.eps, problem.kind)
        if key not in self._compiled:
            function = self.function(problem)
            self._compiled[key] = _Compiled(
                forward=jax.jit(function),
                forward_saving=jax.jit(partial(jax.vjp, function)),
                backward=jax.jit(lambda saved, dy: saved(dy)),
            )
        return self._compiled[key]


class JaxLayer(Jax):
    """A LayerNorm or RMSNorm of the module that `layers` names."""

    layers: ClassVar[str]

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._module: Any = importlib.import_module(self.layers)

    def layer(self, problem: Problem) -> Any:
        """Return the class of the layer."""
        return self._module.LayerNorm if problem.kind == "layer_norm" else self._module.RMSNorm


class Flax(JaxLayer):
    """The layers of `flax.nnx` with their defaults, which include `use_fast_variance=True`."""

    name: ClassVar[str] = "flax"
    distribution: ClassVar[str] = "flax"
    layers: ClassVar[str] = "flax.nnx"

    def function(self, problem: Problem) -> Function:
        """Return the layer, split from its parameters."""
        from flax import nnx

        layer = self.layer(problem)(problem.cols, **_options_of_flax(problem), rngs=nnx.Rngs(0))
        graph, state = nnx.split(layer)

        def apply(x: Any, *parameters: Any) -> Any:
            layer = nnx.merge(graph, state)
            for name, parameter in zip(NAMES_IN_FLAX, parameters, strict=False):
                setattr(layer, name, nnx.Param(parameter))
            return layer(x)

        return apply


class Linen(JaxLayer):
    """The layers of `flax.linen` with their defaults."""

    name: ClassVar[str] = "flax.linen"
    distribution: ClassVar[str] = "flax"
    layers: ClassVar[str] = "flax.linen"

    def function(self, problem: Problem) -> Function:
        """Return the layer, whose parameters are arguments."""
        layer = self.layer(problem)(**_options_of_flax(problem))

        def apply(x: Any, *parameters: Any) -> Any:
            return layer.apply({"params": dict(zip(NAMES_IN_FLAX, parameters, strict=False))}, x)

        return apply


class Equinox(JaxLayer):
    """The layers of `equinox.nn`, mapped over the rows with jax.vmap as documented there."""

    name: ClassVar[str] = "equinox"
    distribution: ClassVar[str] = "equinox"
    layers: ClassVar[str] = "equinox.nn"

    def function(self, problem: Problem) -> Function:
        """Return the layer for one row, mapped over the rows."""
        if problem.is_channels_first:
            raise Unsupported("equinox normalizes the last axes only")
        import equinox

        has_bias = problem.kind == "layer_norm"
        layer = self.layer(problem)(problem.cols, eps=problem.eps, use_bias=has_bias)

        def apply(x: Any, *parameters: Any) -> Any:
            own = equinox.tree_at(_parameters_of_equinox, layer, parameters)
            return jax.vmap(own)(x)

        return apply


def _parameters_of_equinox(layer: Any) -> tuple[Any, ...]:
    return (layer.weight,) if layer.bias is None else (layer.weight, layer.bias)


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


def _rms_norm(x: Any, weight: Any, *, axis: int, eps: float) -> Any:
    shape = [1] * x.ndim
    shape[axis] = -1
    widened = x.astype(jnp.float32)
    rstd = jax.lax.rsqrt((widened * widened).mean(axis, keepdims=True) + eps)
    return (widened * rstd * weight.astype(jnp.float32).reshape(shape)).astype(x.dtype)


def _jax_arrays(problem: Problem) -> tuple[Any, ...]:
    return problem.arrays_of("jax", jnp.asarray)
