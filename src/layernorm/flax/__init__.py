"""Layer norm and RMS norm for Flax: `linen` and `nnx` hold the classes of Flax's modules' names."""

from layernorm.flax import linen, nnx

__all__ = ["linen", "nnx"]
