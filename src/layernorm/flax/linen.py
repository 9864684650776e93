"""`flax.linen`'s LayerNorm and RMSNorm, computed by our functions."""

import functools
from typing import Any

from flax import linen
from jax import Array

from layernorm.flax.normalize import axes_of, is_served, normalize, settings_of
from layernorm.jax.beside import Beside


class LayerNorm(linen.LayerNorm):
    """Layer norm: a `flax.linen.LayerNorm`, with the same arguments, parameters and types.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, as `layernorm.jax.layer_norm`. The variance
    is always that of the centered row, in float32 or float64: `use_fast_variance` and
    `force_float32_reductions` are ignored.
    """

    @linen.compact
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
        if not is_served(x, settings):
            return beside.around(functools.partial(super().__call__, mask=mask), x)
        return normalize(x, _scale(self, x), _bias(self, x), mask, settings, beside)


class RMSNorm(linen.RMSNorm):
    """RMS norm: a `flax.linen.RMSNorm`, with the same arguments, parameter and types.

    y = x / sqrt(mean(x**2) + epsilon) * scale, as `layernorm.jax.rms_norm`.
    """

    @linen.compact
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
            mask: which elements the mean of the squares is taken over.
            gate, activation, norm_before_gate: as in `layernorm.jax.layer_norm`.
        """
        beside = Beside(residual, gate, activation, norm_before_gate).checked(x)
        settings = settings_of(self, centered=False)
        if not is_served(x, settings):
            return beside.around(functools.partial(super().__call__, mask=mask), x)
        return normalize(x, _scale(self, x), None, mask, settings, beside)


def _scale(module: Any, x: Any) -> Array | None:
    if not module.use_scale:
        return None
    return module.param("scale", module.scale_init, _sizes(module, x), module.param_dtype)


def _bias(module: Any, x: Any) -> Array | None:
    if not module.use_bias:
        return None
    return module.param("bias", module.bias_init, _sizes(module, x), module.param_dtype)


def _sizes(module: Any, x: Any) -> list[int]:
    return [x.shape[axis] for axis in axes_of(module.feature_axes, x.ndim)]
