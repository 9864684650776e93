"""The top level's functions (layernorm.layer_norm), for TensorFlow's tensors and variables."""

from typing import Any, SupportsFloat

from layernorm import spec
from layernorm.tensorflow import functional


def layer_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    out: None = None,
    zero_centered_weight: bool = False,
) -> Any:
    """Normalize `x` over `axis`, as `layernorm.layer_norm` says: y = xhat * weight + bias.

    Args: as in `layernorm.layer_norm`, but for `out`: nothing can be written to a tensor.
    Returns: y.
    Raises: as `layernorm.tensorflow.layer_norm` does.
    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    _check_out(out)
    return functional.layer_norm(
        x, weight, bias, axis=axis, eps=eps, zero_centered_weight=zero_centered_weight
    )


def rms_norm(
    x: Any,
    weight: Any = None,
    *,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    out: None = None,
    zero_centered_weight: bool = False,
) -> Any:
    """Divide `x` by its root mean square, as `layernorm.rms_norm` says: y = xhat * weight.

    Args: as in `layernorm.rms_norm`, but for `out`: nothing can be written to a tensor.
    Returns: y.
    Raises: as `layernorm.tensorflow.rms_norm` does.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    _check_out(out)
    return functional.rms_norm(
        x, weight, axis=axis, eps=eps, zero_centered_weight=zero_centered_weight
    )


def _check_out(out: object) -> None:
    if out is not None:
        raise TypeError(
            "out is given, but TensorFlow's tensors are not written to, expected None: "
            "take y from what is returned"
        )
