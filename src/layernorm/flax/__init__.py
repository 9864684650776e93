"""Layer norm and RMS norm for Flax: `linen` and `nnx` have the classes of Flax's two modules."""

from layernorm.flax import linen, nnx
from layernorm.flax.inspection.inspect import inspect

__all__ = ["inspect", "linen", "nnx"]
