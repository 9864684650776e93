"""`equinox.nn`'s LayerNorm and RMSNorm, computed by our functions."""

from collections.abc import Callable
from typing import Any

import equinox
import jax
import jax.numpy as jnp
from jax import Array

from layernorm import jax as functions
from layernorm import spec
from layernorm.jax.beside import Beside

_NO_STATE = object()


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
        beside = Beside(residual, gate, activation, norm_before_gate)
        if not _is_served(self, x):
            return _theirs(super().__call__, x, state, beside)
        with jax.named_scope("layernorm.equinox.LayerNorm"):
            weight, bias = _parameters(self, x)
            options: Any = {"axis": _every(x), "eps": self.eps, **beside._asdict()}
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
        beside = Beside(residual, gate, activation, norm_before_gate)
        if not _is_served(self, x):
            return _theirs(super().__call__, x, state, beside)
        with jax.named_scope("layernorm.equinox.RMSNorm"):
            weight, bias = _parameters(self, x)
            options: Any = {"axis": _every(x), "eps": self.eps}
            if bias is None:
                result = functions.rms_norm(x, weight, **options, **beside._asdict())
            elif gate is None and x.dtype == bias.dtype:
                result = functions.rms_norm(x, weight, **options, residual=residual)
                y, *total = (result,) if residual is None else result
                result = (y + bias, *total) if total else y + bias
            else:
                result = _around(
                    lambda u: functions.rms_norm(u, weight, **options) + bias, x, beside
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


def _theirs(call: Any, x: Array, state: Any, beside: Beside) -> Any:
    """Leave the call to Equinox: it raises its errors, takes other types, broadcasts parameters."""
    if beside.is_nothing:
        return call(x) if state is _NO_STATE else call(x, state)
    result = _around(call, x, beside)
    return result if state is _NO_STATE else (result, state)


def _around(norm: Callable[[Array], Array], x: Array, beside: Beside) -> Any:
    beside.check_type_of(x)
    return beside.checked(x).around(norm, x, dtype=x.dtype)


def _parameters(module: Any, x: Array) -> tuple[Array | None, Array | None]:
    """Return the weight and the bias, None for one that Equinox ignores."""
    dtype = spec.compute_type(x.dtype.name)
    weight = module.weight.astype(dtype) if module.use_weight else None
    return weight, module.bias.astype(dtype) if module.use_bias else None


def _every(x: Array) -> tuple[int, ...]:
    return tuple(range(x.ndim))
