"""Finds the front end for an array from its type, and imports no framework to do so."""

import functools
import importlib
from types import ModuleType
from typing import Any, SupportsFloat

import layernorm.numpy
from layernorm import spec

# The package that the array's type (or a base of it) comes from, and the front end for it.
_FRONT_ENDS = {
    "numpy": "layernorm.numpy",
    "torch": "layernorm.torch.any_array",
    "jax": "layernorm.jax",  # what is traced
    "jaxlib": "layernorm.jax",  # arrays
    "tensorflow": "layernorm.tensorflow",
    "keras": "layernorm.keras",  # symbolic tensors, and variables
}

# Nothing can be written to their arrays, so their functions take no `out`.
_WITHOUT_OUT = ("layernorm.jax", "layernorm.tensorflow", "layernorm.keras")


def layer_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    out: Any = None,
    zero_centered_weight: bool = False,
) -> Any:
    """Normalize an array of any known kind to zero mean and unit variance, then scale and shift.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with the biased variance over `axis`.

    Args:
        x: an array, or a list of numbers, which NumPy makes an array of. Now served: NumPy's,
            PyTorch's, JAX's, TensorFlow's and Keras's.
        weight, bias: of x's kind, with the normalized shape, or None.
        axis, eps, zero_centered_weight: as in `layernorm.numpy.layer_norm`.
        out: likewise, for arrays that can be written to: NumPy's and PyTorch's.
    Returns: y, of x's kind, shape and type.
    Raises: TypeError for an x of an unknown kind, else what the front end raises.
    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    return _front_end(x).layer_norm(
        x,
        weight,
        bias,
        axis=axis,
        eps=eps,
        zero_centered_weight=zero_centered_weight,
        **_place(out, x),
    )


def rms_norm(
    x: Any,
    weight: Any = None,
    *,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    out: Any = None,
    zero_centered_weight: bool = False,
) -> Any:
    """Divide an array of any known kind by its root mean square over `axis`, then scale.

    y = x / sqrt(mean(x**2) + eps) * weight

    Args:
        x: an array, or a list of numbers, which NumPy makes an array of. Now served: NumPy's,
            PyTorch's, JAX's, TensorFlow's and Keras's.
        weight: of x's kind, with the normalized shape, or None.
        axis, eps, zero_centered_weight: as in `layernorm.numpy.rms_norm`.
        out: as in `layer_norm`.
    Returns: y, of x's kind, shape and type.
    Raises: TypeError for an x of an unknown kind, else what the front end raises.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    return _front_end(x).rms_norm(
        x,
        weight,
        axis=axis,
        eps=eps,
        zero_centered_weight=zero_centered_weight,
        **_place(out, x),
    )


def _front_end(x: object) -> ModuleType:
    return _front_end_of(type(x))  # type: ignore[arg-type]


@functools.cache
def _front_end_of(kind: type[Any]) -> ModuleType:
    if kind in (list, tuple):
        return layernorm.numpy
    for each in kind.__mro__:
        name = _FRONT_ENDS.get(each.__module__.partition(".")[0])
        if name is not None:
            return importlib.import_module(name)
    served = sorted({name.split(".")[1] for name in _FRONT_ENDS.values()})
    raise TypeError(
        f"x is of type {kind.__module__}.{kind.__qualname__}, expected an array of a kind that a "
        f"front end serves ({', '.join(served)}): pass for example np.asarray(x)"
    )


def _place(out: Any, x: object) -> dict[str, Any]:
    """Return the keyword `out` if it is given, and x's front end takes it."""
    if out is None:
        return {}
    name = _front_end(x).__name__
    if name in _WITHOUT_OUT:
        raise TypeError(
            f"out is of type {type(out).__name__}, expected None, since {name} serves arrays that "
            "cannot be written to: take y from what is returned"
        )
    return {"out": out}
