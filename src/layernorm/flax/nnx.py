"""`flax.nnx`'s LayerNorm and RMSNorm, computed by our functions."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from layernorm.flax.normalize import is_served, normalize, settings_of
from layernorm.jax.beside import Beside


class LayerNorm(nnx.LayerNorm):
    """Layer norm: a `flax.nnx.LayerNorm`, with the same arguments, parameters and types.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, as `layernorm.jax.layer_norm`. The variance
    is always that of the centered row: `use_fast_variance` is ignored.
    """

    def __call__(
        self,
        x: Any,
        *,
        mask: Any = None,
        residual: Any = None,
        gate: Any = None,
        activation: str = "silu",
        norm_before_gate: bool = True,
    ) -> Any:
        """Return y; with a residual, of x's shape and type, y of total = x + residual, and total.

        Args:
            mask: which elements the mean and the variance are taken over.
            gate, activation, norm_before_gate: as in `layernorm.jax.layer_norm`.
        """
        beside = Beside(residual, gate, activation, norm_before_gate).checked(x)
        settings = settings_of(self, centered=True)
        given = (x, _value(self.scale), _value(self.bias))
        promoted, scale, bias = self.promote_dtype(given, dtype=self.dtype)
        if not is_served(promoted, settings):
            return beside.around(functools.partial(super().__call__, mask=mask), x)
        if residual is not None and promoted.dtype != jnp.result_type(x):
            return beside.of_sum(lambda total, rest: self(total, mask=mask, **rest._asdict()), x)
        return normalize(promoted, scale, bias, mask, settings, beside)


class RMSNorm(nnx.RMSNorm):
    """RMS norm: a `flax.nnx.RMSNorm`, with the same arguments, parameter and types.

    y = x / sqrt(mean(x**2) + epsilon) * scale, as `layernorm.jax.rms_norm`.
    """

    def __call__(
        self,
        x: Any,
        mask: Any = None,
        *,
        residual: Any = None,
        gate: Any = None,
        activation: str = "silu",
        norm_before_gate: bool = True,
    ) -> Any:
        """Return y; with a residual, of x's shape and type, y of total = x + residual, and total.

        Args:
            mask: which elements the mean of the squares is taken over.
            gate, activation, norm_before_gate: as in `layernorm.jax.layer_norm`.
        """
        beside = Beside(residual, gate, activation, norm_before_gate).checked(x)
        settings = settings_of(self, centered=False)
        promoted, scale = self.promote_dtype((x, _value(self.scale)), dtype=self.dtype)
        if not is_served(promoted, settings):
            return beside.around(functools.partial(super().__call__, mask=mask), x)
        if residual is not None and promoted.dtype != jnp.result_type(x):
            return beside.of_sum(lambda total, rest: self(total, mask=mask, **rest._asdict()), x)
        return normalize(promoted, scale, None, mask, settings, beside)


def _value(parameter: Any) -> Array | None:
    return parameter[...] if parameter else None
