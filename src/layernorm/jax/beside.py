"""A residual and a gate around a norm that takes neither, for the modules of Flax and Equinox."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from layernorm import spec
from layernorm.jax.arguments import checked_gate, convert
from layernorm.jax.definition import Gating, compute_type
from layernorm.jax.functional import rms_norm
from layernorm.jax.gate import factors_of


class Beside(NamedTuple):
    """The arguments of `layer_norm` that a module's call takes beside x."""

    residual: Any = None
    gate: Any = None
    activation: str = "silu"
    norm_before_gate: bool = True

    @property
    def is_nothing(self) -> bool:
        """Tell whether x is alone."""
        return self.residual is None and self.gate is None

    def checked(self, x: Any) -> "Beside":
        """Check a gate, which has x's shape and type; `layer_norm` checks a residual.

        Raises: TypeError and ValueError.
        """
        if self.gate is None:
            return self
        gate = jnp.asarray(self.gate)
        checked_gate(jnp.asarray(x), gate, self.activation, self.norm_before_gate)
        return self._replace(gate=gate)

    def check_type_of(self, x: Any) -> None:
        """Check that a gate can multiply x, or its norm. Raises: TypeError."""
        if self.gate is not None:
            spec.check_types(jnp.asarray(x).dtype.name, convert=convert)

    def of_sum(self, call: Callable[[Any, "Beside"], Any], x: Any) -> Any:
        """Return call(x, self); with a residual (y, total), with y = call(total, the rest)."""
        if self.residual is None:
            return call(x, self)
        _, total = rms_norm(x, residual=self.residual)
        gate = None if self.gate is None else self.gate.astype(total.dtype)
        return call(total, self._replace(residual=None, gate=gate)), total

    def around(self, norm: Callable[[Any], Any], x: Any, dtype: Any = None) -> Any:
        """Return y, or with a residual (y, total), where `norm` computes the norm of x alone.

        With `dtype`, `norm` is given a widened x, and y is rounded once, to `dtype`. None leaves
        the type to `norm`, and gives it arrays of x's type only: its argument and its result are
        rounded too.
        """

        def gated(x: Any, rest: Beside) -> Any:
            rest.check_type_of(x)
            u = x if dtype is None else x.astype(compute_type(x.dtype))
            y = norm(u) if rest.gate is None else rest._gated(norm, jnp.asarray(u))
            return y if dtype is None else y.astype(dtype)

        return self.of_sum(gated, x)

    def _gated(self, norm: Callable[[Any], Any], x: Array) -> Array:
        wide = compute_type(x.dtype)
        gating = Gating(self.activation, self.norm_before_gate)
        act = factors_of(self.gate, gating, wide).value
        if self.norm_before_gate:
            y = norm(x)
            return (y.astype(wide) * act).astype(y.dtype)
        return norm((x.astype(wide) * act).astype(x.dtype))
