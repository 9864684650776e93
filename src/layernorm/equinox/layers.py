"""`equinox.nn`'s LayerNorm and RMSNorm, computed by our functions."""

from collections.abc import Callable
from typing import Any, TypeAlias

import equinox
import jax
import jax.numpy as jnp
from jax import Array

from layernorm import jax as functions
from layernorm import spec

_NO_STATE = object()

_Gated: TypeAlias = tuple[Any, str, bool]  # gate, activation, norm_before_gate


class LayerNorm(equinox.nn.LayerNorm):
    """Layer norm: an `equinox.nn.LayerNorm`, with the same arguments, fields and types.

    y = (x - mean) / sqrt(var + eps) * weight + bias, as `layernorm.jax.layer_norm`, over all axes.
    Under jax.vmap, which Equinox's users put around it, the whole batch is one call.
    """

    def __call__(
        self,
        x: Array,
        state: Any = _NO_STATE,
        *,
        key: Any = None,
        residual: Any = None,
        gate: Any = None,
        activation: str = "silu",
        norm_before_gate: bool = True,
    ) -> Any:
        """Return y; with a residual, of x's shape and type, y of total = x + residual, and total.

        With `state`, also return it unchanged: (y, state) or ((y, total), state). `key` is ignored.

        Args: gate, activation, norm_before_gate: as in `layernorm.jax.layer_norm`.
        """
        gated = (gate, activation, norm_before_gate)
        if not _is_served(self, x):
            return _theirs(super().__call__, x, state, residual, gated)
        with jax.named_scope("layernorm.equinox.LayerNorm"):
            weight, bias = _parameters(self, x)
            options: Any = {"axis": _every(x), "eps": self.eps, **_beside(residual, gated)}
            result = functions.layer_norm(x, weight, bias, **options)
        return result if state is _NO_STATE else (result, state)


class RMSNorm(equinox.nn.RMSNorm):
    """RMS norm: an `equinox.nn.RMSNorm`, with the same arguments, fields and types.

    y = x / sqrt(mean(x**2) + eps) * weight + bias, as `layernorm.jax.rms_norm`, over all axes.
    """

    def __call__(
        self,
        x: Array,
        state: Any = _NO_STATE,
        *,
        key: Any = None,
        residual: Any = None,
        gate: Any = None,
        activation: str = "silu",
        norm_before_gate: bool = True,
    ) -> Any:
        """Return y; with a residual, of x's shape and type, y of total = x + residual, and total.

        With `state`, also return it unchanged: (y, state) or ((y, total), state). `key` is ignored.

        Args: gate, activation, norm_before_gate: as in `layernorm.jax.layer_norm`.
        """
        gated = (gate, activation, norm_before_gate)
        if not _is_served(self, x):
            return _theirs(super().__call__, x, state, residual, gated)
        with jax.named_scope("layernorm.equinox.RMSNorm"):
            weight, bias = _parameters(self, x)
            options: Any = {"axis": _every(x), "eps": self.eps}
            if bias is None:
                result = functions.rms_norm(x, weight, **options, **_beside(residual, gated))
            elif gate is None and x.dtype == bias.dtype:
                result = functions.rms_norm(x, weight, **options, residual=residual)
                y, *total = (result,) if residual is None else result
                result = (y + bias, *total) if total else y + bias
            else:
                result = _around(
                    lambda u: functions.rms_norm(u, weight, **options) + bias, x, residual, gated
                )
        return result if state is _NO_STATE else (result, state)


def _is_served(module: Any, x: Array) -> bool:
    """Tell whether our functions take the call: x has axes, and the parameters have its shape."""
    used = [(module.use_weight, module.weight), (module.use_bias, module.bias)]
    return (
        x.shape == module.shape
        and x.ndim > 0
        and jnp.issubdtype(x.dtype, jnp.floating)
        and not isinstance(module.eps, jax.core.Tracer)
        and spec.is_eps(module.eps)
        and all(getattr(each, "shape", None) == x.shape for is_used, each in used if is_used)
    )


def _theirs(call: Any, x: Array, state: Any, residual: Any, gated: _Gated) -> Any:
    """Leave the call to Equinox: it raises its errors, takes other types, broadcasts parameters."""
    if residual is None and gated[0] is None:
        return call(x) if state is _NO_STATE else call(x, state)
    result = _around(call, x, residual, gated)
    return result if state is _NO_STATE else (result, state)


def _beside(residual: Any, gated: _Gated) -> dict[str, Any]:
    gate, activation, norm_before_gate = gated
    options = {"activation": activation, "norm_before_gate": norm_before_gate}
    return {"residual": residual, "gate": gate, **options}


def _around(norm: Callable[[Array], Array], x: Array, residual: Any, gated: _Gated) -> Any:
    """Return y, or with a residual (y, total), where `norm` computes the norm of x alone.

    It is given a widened x, so that a 16-bit y is rounded once.
    """
    gate, activation, norm_before_gate = gated
    act = None if gate is None else _activated(gate, x, activation)
    total = x if residual is None else functions.rms_norm(x, residual=residual)[1]
    u = total.astype(spec.compute_type(x.dtype.name))
    y = norm(u if act is None or norm_before_gate else u * act)
    y = (y if act is None or not norm_before_gate else y * act).astype(x.dtype)
    return y if residual is None else (y, total)


def _activated(gate: Any, x: Array, activation: str) -> Array:
    """Check a gate, and return act(gate), widened. Raises: TypeError and ValueError."""
    gate = jnp.asarray(gate)
    spec.check_types(x.dtype.name, convert=_convert)
    spec.check_same_type("gate", gate.dtype.name, x.dtype.name, convert=_convert)
    spec.check_shape("gate", gate.shape, x.shape, of=f"x of shape {x.shape}")
    z = gate.astype(spec.compute_type(x.dtype.name))
    if spec.check_activation(activation) == "sigmoid":
        return jax.nn.sigmoid(z)
    return jax.nn.silu(jnp.maximum(z, jnp.finfo(z.dtype).min))  # -0 at -infinity, the limit


def _convert(name: str, type_name: str) -> str:
    return f"jnp.asarray({name}, jnp.{type_name})"


def _parameters(module: Any, x: Array) -> tuple[Array | None, Array | None]:
    """Return the weight and the bias, None for one that Equinox ignores."""
    dtype = spec.compute_type(x.dtype.name)
    weight = module.weight.astype(dtype) if module.use_weight else None
    return weight, module.bias.astype(dtype) if module.use_bias else None


def _every(x: Array) -> tuple[int, ...]:
    return tuple(range(x.ndim))
