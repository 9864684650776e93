"""The top level's functions (layernorm.layer_norm), for JAX's arrays."""

from typing import Any, SupportsFloat

from jax import Array

from layernorm import spec
from layernorm.jax import functional


def layer_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    out: None = None,
    zero_centered_weight: bool = False,
) -> Array:
    """Normalize `x` over `axis`, as `layernorm.layer_norm` says: y = xhat * weight + bias.

    Args: as in `layernorm.layer_norm`: x, weight, bias, axis, eps, zero_centered_weight; no out.
    Returns: y.
    Raises: ValueError for shapes, axes and eps; TypeError for types, and for an out.
    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    _check_no_out(out)
    return functional.layer_norm(
        x, weight, bias, axis=axis, eps=eps, zero_centered_weight=zero_centered_weight
    )


def rms_norm(
    x: Array,
    weight: Array | None = None,
    *,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    out: None = None,
    zero_centered_weight: bool = False,
) -> Array:
    """Divide `x` by its root mean square, as `layernorm.rms_norm` says: y = xhat * weight.

    Args: as in `layernorm.rms_norm`: x, weight, axis, eps, zero_centered_weight; no out.
    Returns: y.
    Raises: ValueError for shapes, axes and eps; TypeError for types, and for an out.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    _check_no_out(out)
    return functional.rms_norm(
        x, weight, axis=axis, eps=eps, zero_centered_weight=zero_centered_weight
    )


def _check_no_out(out: Any) -> None:
    if out is not None:
        raise TypeError(
            f"out is of type {type(out).__name__}, but JAX's arrays cannot be written to: leave "
            "out away, and donate x to the jitted function around the call"
        )
