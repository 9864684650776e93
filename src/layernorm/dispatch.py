"""The top level's functions: they find the front end from x's type, and import no framework."""

import functools
import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Protocol, SupportsFloat, TypedDict, TypeVar, Unpack, overload

import layernorm.numpy
from layernorm import spec
from layernorm.numpy.arrays import Array as NumPyArray

# The package that the array's type, or a base of it, comes from, and the module that serves it.
_FRONT_ENDS = {
    "numpy": "layernorm.numpy",
    "torch": "layernorm.torch.over_axes",
    "jax": "layernorm.jax",  # traced arrays
    "jaxlib": "layernorm.jax",  # arrays
    "tensorflow": "layernorm.tensorflow",
    "keras": "layernorm.keras",  # symbolic tensors, and variables
}

# The modules by the type of x. Not a cached function, which the PyTorch compiler would trace.
_known: dict[type, ModuleType] = {list: layernorm.numpy, tuple: layernorm.numpy}

# Their arrays cannot be written to, so their functions take no `out`; and those without `total`.
_WITHOUT_OUT = ("layernorm.jax", "layernorm.tensorflow", "layernorm.keras")
_WITHOUT_TOTAL = (*_WITHOUT_OUT, "layernorm.torch.over_axes")


class _Array(Protocol):
    """What a type checker takes for an array: None and numbers are not, as they have no items."""

    def __getitem__(self, key: Any, /) -> Any: ...


# The overloads give a result x's type. That is too narrow if x is a subclass or a variable whose
# front end returns a plain array: np.memmap, torch.nn.Parameter, tf.Variable. They give Any for a
# list, and in 8 bits for NumPy's arrays, whose types include the dtype. A list is an _Array too,
# so its overload comes first.
_ArrayT = TypeVar("_ArrayT", bound=_Array)


class _Options(TypedDict, total=False):
    axis: spec.Axis
    eps: SupportsFloat
    zero_centered_weight: bool


class _NormOptions(_Options, total=False):
    gate: Any
    activation: str
    norm_before_gate: bool
    out: Any
    total: Any


class _QuantizedOptions(_Options, total=False):
    dtype: Any


@overload
def layer_norm(
    x: Sequence[Any],
    weight: Any = None,
    bias: Any = None,
    *,
    residual: Any = None,
    **options: Unpack[_NormOptions],
) -> Any: ...
@overload
def layer_norm(
    x: _ArrayT,
    weight: Any = None,
    bias: Any = None,
    *,
    residual: None = None,
    **options: Unpack[_NormOptions],
) -> _ArrayT: ...
@overload
def layer_norm(
    x: _ArrayT,
    weight: Any = None,
    bias: Any = None,
    *,
    residual: _Array,
    **options: Unpack[_NormOptions],
) -> tuple[_ArrayT, _ArrayT]: ...
def layer_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    residual: Any = None,
    gate: Any = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    out: Any = None,
    total: Any = None,
    zero_centered_weight: bool = False,
) -> Any:
    """Normalize an array of any supported kind to zero mean and unit variance, scale and shift.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with the biased variance over `axis`.

    Args:
        x: an array of NumPy, PyTorch, JAX, TensorFlow or Keras; or a list of numbers, which is
            converted to a NumPy array.
        weight, bias: of x's kind, with the normalized shape, or None.
        residual: an array of x's kind, shape and type to add first.
        gate: an array of x's kind, shape and type to multiply y by, activated.
        activation, norm_before_gate: of the gate, as in `layernorm.numpy.layer_norm`.
        axis, eps, zero_centered_weight: as in `layernorm.numpy.layer_norm`.
        out: likewise, for arrays that can be written to: NumPy's and PyTorch's.
        total: likewise, for NumPy's.
    Returns: y, of x's kind, shape and type. With a residual (y, total): total is x + residual, and
        y the norm of that.
    Raises: TypeError if x is of another kind, else what the front end raises.
    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    front_end = _known.get(type(x)) or _front_end_of(type(x))
    function = front_end.layer_norm
    if residual is not None or gate is not None or out is not None or total is not None:
        gating = {"activation": activation, "norm_before_gate": norm_before_gate}
        given = {"residual": residual, "gate": gate, "out": out, "total": total}
        function = _with(front_end, "layer_norm", **given, **gating)
    return function(x, weight, bias, axis=axis, eps=eps, zero_centered_weight=zero_centered_weight)


@overload
def rms_norm(
    x: Sequence[Any], weight: Any = None, *, residual: Any = None, **options: Unpack[_NormOptions]
) -> Any: ...
@overload
def rms_norm(
    x: _ArrayT, weight: Any = None, *, residual: None = None, **options: Unpack[_NormOptions]
) -> _ArrayT: ...
@overload
def rms_norm(
    x: _ArrayT, weight: Any = None, *, residual: _Array, **options: Unpack[_NormOptions]
) -> tuple[_ArrayT, _ArrayT]: ...
def rms_norm(
    x: Any,
    weight: Any = None,
    *,
    residual: Any = None,
    gate: Any = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    out: Any = None,
    total: Any = None,
    zero_centered_weight: bool = False,
) -> Any:
    """Divide an array of any supported kind by its root mean square over `axis`, then scale.

    y = x / sqrt(mean(x**2) + eps) * weight

    Args:
        x: an array of NumPy, PyTorch, JAX, TensorFlow or Keras; or a list of numbers, which is
            converted to a NumPy array.
        weight: of x's kind, with the normalized shape, or None.
        axis, eps, zero_centered_weight: as in `layernorm.numpy.rms_norm`.
        residual, gate, activation, norm_before_gate, out, total: as in `layer_norm`.
    Returns: y, or (y, total), as `layer_norm` does.
    Raises: TypeError if x is of another kind, else what the front end raises.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    front_end = _known.get(type(x)) or _front_end_of(type(x))
    function = front_end.rms_norm
    if residual is not None or gate is not None or out is not None or total is not None:
        gating = {"activation": activation, "norm_before_gate": norm_before_gate}
        given = {"residual": residual, "gate": gate, "out": out, "total": total}
        function = _with(front_end, "rms_norm", **given, **gating)
    return function(x, weight, axis=axis, eps=eps, zero_centered_weight=zero_centered_weight)


@overload
def quantized_layer_norm(
    x: NumPyArray | Sequence[Any],
    weight: Any = None,
    bias: Any = None,
    *,
    scale: Any = None,
    **options: Unpack[_QuantizedOptions],
) -> Any: ...
@overload
def quantized_layer_norm(
    x: _ArrayT,
    weight: Any = None,
    bias: Any = None,
    *,
    scale: None = None,
    **options: Unpack[_QuantizedOptions],
) -> tuple[_ArrayT, _ArrayT]: ...
@overload
def quantized_layer_norm(
    x: _ArrayT,
    weight: Any = None,
    bias: Any = None,
    *,
    scale: SupportsFloat | _Array,
    **options: Unpack[_QuantizedOptions],
) -> _ArrayT: ...
def quantized_layer_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    dtype: Any = "int8",
    scale: Any = None,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    zero_centered_weight: bool = False,
) -> Any:
    """Return the layer norm of an array of any supported kind in 8 bits: y is about q * scale.

    q = y / scale, rounded to nearest, ties to even, and saturated, where y is what `layer_norm`
    returns. The scale of a row is max|y| / (the largest number of `dtype`).

    Args:
        x, weight, bias, axis, eps, zero_centered_weight: as in `layer_norm`.
        dtype: of q: int8, float8_e4m3fn or float8_e5m2, as a name or as x's framework has it.
        scale: a positive number, for all rows; None for one for each row.
    Returns: (q, scales), of x's kind; with a given scale q alone: see
        `layernorm.numpy.quantized_layer_norm`. There is no gradient.
    Raises: TypeError if x is of another kind, else what the front end raises.
    """
    front_end = _known.get(type(x)) or _front_end_of(type(x))
    given = {"axis": axis, "eps": eps, "zero_centered_weight": zero_centered_weight}
    return front_end.quantized_layer_norm(x, weight, bias, dtype=dtype, scale=scale, **given)


@overload
def quantized_rms_norm(
    x: NumPyArray | Sequence[Any],
    weight: Any = None,
    *,
    scale: Any = None,
    **options: Unpack[_QuantizedOptions],
) -> Any: ...
@overload
def quantized_rms_norm(
    x: _ArrayT, weight: Any = None, *, scale: None = None, **options: Unpack[_QuantizedOptions]
) -> tuple[_ArrayT, _ArrayT]: ...
@overload
def quantized_rms_norm(
    x: _ArrayT,
    weight: Any = None,
    *,
    scale: SupportsFloat | _Array,
    **options: Unpack[_QuantizedOptions],
) -> _ArrayT: ...
def quantized_rms_norm(
    x: Any,
    weight: Any = None,
    *,
    dtype: Any = "int8",
    scale: Any = None,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    zero_centered_weight: bool = False,
) -> Any:
    """Return the RMS norm of an array of any supported kind in 8 bits: y is about q * scale.

    Args: as in `rms_norm` and `quantized_layer_norm`.
    Returns: (q, scales), or q, as `quantized_layer_norm` does.
    Raises: TypeError if x is of another kind, else what the front end raises.
    """
    front_end = _known.get(type(x)) or _front_end_of(type(x))
    given = {"axis": axis, "eps": eps, "zero_centered_weight": zero_centered_weight}
    return front_end.quantized_rms_norm(x, weight, dtype=dtype, scale=scale, **given)


def _front_end_of(kind: type) -> ModuleType:
    for each in kind.__mro__:
        name = _FRONT_ENDS.get(each.__module__.partition(".")[0])
        if name is not None:
            _known[kind] = importlib.import_module(name)
            return _known[kind]
    served = sorted({name.split(".")[1] for name in _FRONT_ENDS.values()})
    raise TypeError(
        f"x is of type {kind.__module__}.{kind.__qualname__}, expected an array of a kind that a "
        f"front end serves ({', '.join(served)}): pass one; if x holds "
        "numbers, np.asarray(x, np.float32)"
    )


def _with(front_end: ModuleType, name: str, **given: Any) -> Callable[..., Any]:
    """Bind these arguments, those that are not None, to a front end's function.

    Raises: TypeError if it takes no `out` or `total`.
    """
    given = {each: value for each, value in given.items() if value is not None}
    for each, without in (("out", _WITHOUT_OUT), ("total", _WITHOUT_TOTAL)):
        if each in given and front_end.__name__ in without:
            result, name = "y" if each == "out" else "total", front_end.__name__
            cannot = f"arrays of {name} cannot be written to"
            reason = cannot if name in _WITHOUT_OUT else f"{name} returns a new one"
            raise TypeError(
                f"{each} is of type {type(given[each]).__name__}, expected None, because {reason}: "
                f"use the {result} that is returned"
            )
    return functools.partial(getattr(front_end, name), **given)
