"""A gate as two factors: of the norm's input or of its result, and of the gate's gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from layernorm.jax.definition import Gating


class Factors(NamedTuple):
    """act(gate) and its derivative, in the compute type; None without a gate.

    A product's gradient and its tangent multiply where the product does. So `before` and `after`
    are for x and y, for their tangents and for their gradients.
    """

    value: Array | None
    slope: Array | None
    norm_first: bool

    def before(self, u: Array) -> Array:
        """Multiply the norm's input, or its gradient, where the gate is."""
        return u if self.value is None or self.norm_first else u * self.value

    def after(self, n: Array) -> Array:
        """Multiply the norm's result, or its gradient, where the gate is."""
        return n * self.value if self.value is not None and self.norm_first else n

    def by_gate(self, x: Array, n: Array) -> Array:
        """Return the derivative of the product, of x or of the norm, with respect to the gate."""
        return self.slope * (n if self.norm_first else x)


def factors_of(gate: Array | None, gating: Gating | None, dtype: Any) -> Factors:
    """Compute the factors differentiably: silu(z) = z * sigmoid(z), or sigmoid(z)."""
    if gate is None or gating is None:
        return Factors(None, None, norm_first=True)
    z = gate.astype(dtype)
    if gating.activation == "silu":
        # Of infinities, the products below have limits, but are NaN.
        limit = jnp.asarray(jnp.finfo(dtype).max, dtype)
        finite = jnp.clip(z, -limit, limit)
        own, of_minus = jax.nn.sigmoid(z), jax.nn.sigmoid(-z)
        value = jnp.where(z < 0, finite, z) * own
        return Factors(value, own * (1 + finite * of_minus), gating.norm_first)
    own = jax.nn.sigmoid(z)
    return Factors(own, own * jax.nn.sigmoid(-z), gating.norm_first)
