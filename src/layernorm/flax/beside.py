"""A residual and a gate around a norm that takes neither."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from layernorm import jax as functions
from layernorm import spec


class Beside(NamedTuple):
    """The arguments of `layernorm.jax.layer_norm` that a module's call takes beside x."""

    residual: Any = None
    gate: Any = None
    activation: str = "silu"
    norm_before_gate: bool = True

    @classmethod
    def checked(
        cls, x: Any, residual: Any, gate: Any, activation: str, norm_before_gate: bool
    ) -> "Beside":
        """Check a gate, which has x's shape and type; `layer_norm` checks a residual.

        Raises: TypeError and ValueError.
        """
        if gate is not None:
            x, gate = jnp.asarray(x), jnp.asarray(gate)
            spec.check_same_type("gate", gate.dtype.name, x.dtype.name, convert=_convert)
            spec.check_shape("gate", gate.shape, x.shape, of=f"x of shape {x.shape}")
            spec.check_activation(activation)
        return cls(residual, gate, activation, norm_before_gate)

    @property
    def is_nothing(self) -> bool:
        """Tell whether x is alone."""
        return self.residual is None and self.gate is None

    def of_sum(self, call: Callable[[Any, "Beside"], Any], x: Any) -> Any:
        """Return call(x, self); with a residual (y, total), with y = call(total, the rest)."""
        if self.residual is None:
            return call(x, self)
        _, total = functions.rms_norm(x, residual=self.residual)
        gate = None if self.gate is None else self.gate.astype(total.dtype)
        return call(total, self._replace(residual=None, gate=gate)), total

    def around(self, norm: Callable[[Any], Any], x: Any, dtype: Any = None) -> Any:
        """Return y, or with a residual (y, total), where `norm` computes the norm of x alone.

        y is rounded to `dtype`. None leaves the type to `norm`, and gives it arrays of x's type
        only: its argument and its result are rounded too.
        """

        def gated(x: Any, rest: Beside) -> Any:
            y = norm(x) if rest.gate is None else rest._gated(norm, x, wide=dtype is not None)
            return y if dtype is None else y.astype(dtype)

        return self.of_sum(gated, x)

    def _gated(self, norm: Callable[[Any], Any], x: Any, *, wide: bool) -> Array:
        x = jnp.asarray(x)
        spec.check_types(x.dtype.name, convert=_convert)
        z = self.gate.astype(spec.compute_type(x.dtype.name))
        if self.activation == "silu":
            # The limit at -infinity is -0.
            act = jax.nn.silu(jnp.maximum(z, jnp.finfo(z.dtype).min))
        else:
            act = jax.nn.sigmoid(z)
        u = x if self.norm_before_gate else x.astype(act.dtype) * act
        y = norm(u if wide else u.astype(x.dtype))
        return (y.astype(act.dtype) * act).astype(y.dtype) if self.norm_before_gate else y


def _convert(name: str, type_name: str) -> str:
    return f"jnp.asarray({name}, jnp.{type_name})"
