"""Layer norm and RMS norm for Equinox."""

from layernorm.equinox.layers import LayerNorm, RMSNorm

__all__ = ["LayerNorm", "RMSNorm"]
