"""The top level's functions (layernorm.layer_norm), for tensors."""

from typing import Any, SupportsFloat

import torch
from torch import Tensor

from layernorm import _native, spec
from layernorm.torch import functional


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    out: Tensor | None = None,
    zero_centered_weight: bool = False,
) -> Tensor:
    """Normalize `x` over `axis`, as `layernorm.layer_norm` says: y = xhat * weight + bias.

    Args: as in `layernorm.layer_norm`: x, weight, bias, axis, eps, out, zero_centered_weight.
    Returns: y, or `out` with y in it.
    Raises: RuntimeError for shapes and types, IndexError for an axis that x has not.
    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    return _norm(x, weight, bias, axis, eps, out, zero_centered_weight, centered=True)


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    out: Tensor | None = None,
    zero_centered_weight: bool = False,
) -> Tensor:
    """Divide `x` by its root mean square, as `layernorm.rms_norm` says: y = xhat * weight.

    Args: as in `layernorm.rms_norm`: x, weight, axis, eps, out, zero_centered_weight.
    Returns: y, or `out` with y in it.
    Raises: RuntimeError for shapes and types, IndexError for an axis that x has not.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    return _norm(x, weight, None, axis, eps, out, zero_centered_weight, centered=False)


def _norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    axis: Any,
    eps: SupportsFloat,
    out: Tensor | None,
    zero_centered_weight: bool,
    *,
    centered: bool,
) -> Tensor:
    try:
        axes = spec.normalize_axes(axis, x.dim())
    except ValueError as error:
        kind = IndexError if "out of range" in str(error) else RuntimeError
        raise kind(str(error)) from None
    sizes = spec.normalized_shape(x.shape, axes)
    eps = spec.check_eps(eps)
    is_last = axes == tuple(range(x.dim() - len(axes), x.dim()))
    if out is not None and is_last and not torch.compiler.is_compiling():
        options = (axes, eps, centered, zero_centered_weight)
        if _native.torch_try_forward_into(x, weight, bias, *options, out):
            if not out.is_inference():
                torch.autograd.graph.increment_version(out)
            return out
    y = functional.norm(
        x,
        sizes,
        weight,
        bias,
        eps,
        axes,
        centered=centered,
        zero_centered_weight=zero_centered_weight,
    )
    if out is None:
        return y
    if torch.is_grad_enabled() and (y.requires_grad or out.requires_grad):
        raise RuntimeError(
            "out is given, but a gradient is asked for, which does not go through out: "
            "leave out away, or call under torch.no_grad()"
        )
    if out.shape != y.shape or out.dtype != y.dtype:
        raise RuntimeError(
            f"out has shape {tuple(out.shape)} and type {out.dtype}, but y has {tuple(y.shape)} "
            f"and {y.dtype}: pass an out of that shape and type"
        )
    return out.copy_(y)
