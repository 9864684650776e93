"""The rules that all front ends share: axes, shapes, types, layouts, and the errors' text.

Standard library only: shapes are tuples of ints, types are names ("float32"). Front ends run these
checks before they allocate or write anything, so a failing call leaves its arrays unchanged.
"""

import itertools
import math
import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, SupportsFloat, SupportsIndex

Axis = SupportsIndex | Iterable[SupportsIndex]
Shape = tuple[int, ...]
Convert = Callable[[str, str], str]

TYPES = ("float16", "bfloat16", "float32", "float64")


# The smallest and the largest normal numbers of the compute types.
SMALLEST_NORMAL = {"float32": 2.0**-126, "float64": 2.0**-1022}
LARGEST = {"float32": 2.0**128 - 2.0**104, "float64": sys.float_info.max}


def compute_type(x_type: str) -> str:
    """Return the type of the statistics of `x`: float64 for float64, else float32."""
    return "float64" if x_type == "float64" else "float32"


def parameter_types(x_type: str) -> tuple[str, ...]:
    """Return the types that weight and bias may have for an `x` of this type."""
    return (x_type,) if x_type in ("float32", "float64") else (x_type, "float32")


def normalize_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """Return the axes sorted and not negative; in `axis`, negative ones count from the end.

    Raises: TypeError if they are not ints; ValueError if there are none, or one is out of range or
        repeated.
    """
    if type(axis) is int and -ndim <= axis < ndim:
        return (axis % ndim,)
    given = _integers(axis)
    if given is None:
        raise TypeError(
            f"axis is {axis!r} of type {type(axis).__name__}, expected an int or a sequence of "
            "ints: pass for example axis=-1 or axis=(-2, -1)"
        )
    if ndim == 0:
        raise ValueError(
            "x has no axes (shape ()), but layer norm needs at least one to normalize over: "
            "reshape x, for example to (1,)"
        )
    if not given:
        raise ValueError(f"axis is empty, expected at least one of {ndim} axes: pass axis=-1")
    for each in given:
        if not -ndim <= each < ndim:
            raise ValueError(
                f"axis {each} is out of range for x with {ndim} axes: "
                f"pass one from {-ndim} to {ndim - 1}"
            )
    axes = tuple(sorted(each % ndim for each in given))
    if len(set(axes)) < len(axes):
        raise ValueError(
            f"axis {given} names an axis of x with {ndim} axes twice: name each axis once"
        )
    return axes


def _integers(given: object) -> tuple[int, ...] | None:
    """Return an int or an iterable of ints as a tuple, None for anything else, such as a bool."""
    if isinstance(given, str | bytes):
        return None
    many = isinstance(given, Iterable) and getattr(given, "ndim", 1) > 0
    items: tuple[object, ...] = tuple(given) if many else (given,)  # type: ignore[arg-type]
    if any(isinstance(item, bool) for item in items):
        return None
    try:
        return tuple(operator.index(item) for item in items)  # type: ignore[arg-type]
    except TypeError:
        return None


def normalized_shape(shape: Sequence[int], axes: Sequence[int]) -> Shape:
    """Return the shape of weight and bias: the sizes of the normalized axes, which are sorted."""
    return tuple(shape[axis] for axis in axes)


def statistics_shape(shape: Sequence[int], axes: Sequence[int]) -> Shape:
    """Return the shape of mean and rstd: that of x, with the normalized axes kept as size 1."""
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def check_eps(eps: SupportsFloat) -> float:
    """Return `eps` as a float.

    Raises: ValueError if it is negative, infinite or NaN; TypeError if it is not a number.
    """
    is_number = hasattr(type(eps), "__float__") and not getattr(eps, "ndim", 0)
    if isinstance(eps, bool) or not is_number:
        raise TypeError(
            f"eps is {eps!r} of type {type(eps).__name__}, expected a number: "
            "pass for example eps=1e-5"
        )
    value = float(eps)
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError(
            f"eps is {value}, expected a finite, non-negative number: pass for example eps=1e-5"
        )
    return value


def is_eps(eps: Any) -> bool:
    """Tell whether `check_eps` takes it."""
    try:
        check_eps(eps)
    except (TypeError, ValueError):
        return False
    return True


def _convert(name: str, type_name: str) -> str:
    return f"{name} converted to {type_name}"


def check_types(
    x_type: str,
    weight_type: str | None = None,
    bias_type: str | None = None,
    *,
    convert: Convert = _convert,
) -> None:
    """Check x's type, and that weight and bias share one of `parameter_types`.

    `convert(name, type)` returns the code that converts an array, for the end of the message.
    Raises: TypeError.
    """
    if x_type not in TYPES:
        raise TypeError(
            f"x has type {x_type}, expected {_either(TYPES)}: "
            f"call it with {convert('x', 'float32')}"
        )
    allowed = parameter_types(x_type)
    for name, given in (("weight", weight_type), ("bias", bias_type)):
        if given is not None and given not in allowed:
            raise TypeError(
                f"{name} has type {given}, but x of type {x_type} needs {_either(allowed)}: "
                f"pass {convert(name, allowed[-1])}"
            )
    if weight_type is not None and bias_type is not None and weight_type != bias_type:
        raise TypeError(
            f"weight has type {weight_type} and bias has type {bias_type}, expected one type for "
            f"both: pass {convert('bias', weight_type)}"
        )


def check_parameter_type(given: str) -> None:
    """Check the type of a layer's parameters, when there is no x yet. Raises: TypeError."""
    if given not in TYPES:
        raise TypeError(f"dtype is {given}, expected {_either(TYPES)}: pass dtype=np.float32")


def check_same_type(
    name: str, given: str, expected: str, *, of: str = "x", convert: Convert = _convert
) -> None:
    """Check that the array `name` has the type of the array `of`. Raises: TypeError."""
    if given != expected:
        raise TypeError(
            f"{name} has type {given}, but {of} has type {expected} and both must agree: "
            f"pass {convert(name, expected)}"
        )


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _reshape(name: str, shape: Shape) -> str:
    return f"{name}.reshape({shape})"


class _Unknown(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__

    def __repr__(self) -> str:
        return "None"


def symbolic_shape(sizes: Iterable[int | None]) -> Shape:
    """Return a shape for the checks; a size of None, not known yet, equals any other."""
    return tuple(_Unknown() if size is None else size for size in sizes)


def varying_axes(
    shape: Sequence[int], x_shape: Sequence[int], axes: Sequence[int]
) -> tuple[int, ...] | None:
    """Return the kept axes along which a parameter varies; None if its shape does not go with x's.

    It has the normalized shape; or one that broadcasts against x's, with x's sizes along `axes`.

    Args:
        shape: of weight or bias.
        x_shape, axes: as in `normalized_shape`.
    Returns: axes of x, sorted; those where x has size 1 are not among them.
    """
    if tuple(shape) == normalized_shape(x_shape, axes):
        return ()
    sizes = (1,) * (len(x_shape) - len(shape)) + tuple(shape)
    varying = []
    for axis, (size, x_size) in enumerate(zip(sizes, x_shape, strict=False)):
        if size != x_size and (size != 1 or axis in axes):
            return None
        if size != 1 and axis not in axes:
            varying.append(axis)
    return tuple(varying) if len(sizes) == len(x_shape) else None


def parameter_shape(
    x_shape: Sequence[int], axes: Sequence[int], varying: Sequence[int]
) -> tuple[int, ...]:
    """Return the shape, with all of x's axes, of a parameter that varies along kept axes."""
    return tuple(
        size if axis in axes or axis in varying else 1 for axis, size in enumerate(x_shape)
    )


def check_parameter(
    name: str,
    shape: Shape,
    x_shape: Shape,
    axes: Sequence[int],
    *,
    reshape: Callable[[str, Shape], str] = _reshape,
) -> tuple[int, ...]:
    """Check the shape of a parameter (or its gradient), and return its `varying_axes`.

    `reshape(name, shape)` returns the code that reshapes an array, for the end of the message.
    Raises: ValueError.
    """
    varying = varying_axes(shape, x_shape, axes)
    if varying is not None:
        return varying
    expected = normalized_shape(x_shape, axes)
    over = f"axis {axes[0]}" if len(axes) == 1 else f"axes {tuple(axes)}"
    trailing = tuple(range(-len(shape), 0))
    if math.prod(shape) == math.prod(expected):
        remedy = f"pass {reshape(name, expected)}"
    elif shape and tuple(x_shape[-len(shape) :]) == tuple(shape):
        remedy = f"pass axis={trailing[0] if len(trailing) == 1 else trailing}"
    else:
        remedy = f"pass a {name} of that shape, or another axis"
    also = "" if len(shape) <= len(axes) else ", or to broadcast against x with these sizes"
    raise ValueError(
        f"{name} has shape {tuple(shape)}, but x of shape {tuple(x_shape)} normalized over {over} "
        f"needs {expected}{also}: {remedy}"
    )


def check_shape(name: str, shape: Shape, expected: Shape, *, of: str = "x") -> None:
    """Check that the array `name` has the shape of the array `of`. Raises: ValueError."""
    if tuple(shape) != tuple(expected):
        raise ValueError(
            f"{name} has shape {tuple(shape)}, but {of} needs {tuple(expected)}: "
            f"pass a {name} of that shape"
        )


def check_output(
    name: str,
    shape: Shape,
    output_type: str,
    x_shape: Shape,
    x_type: str,
    *,
    writeable: bool = True,
    overlaps: str | None = None,
) -> None:
    """Check that `out` can take y, or `total` the sum.

    `overlaps` names an array of the call that shares memory with it and is not to.
    Raises: ValueError; TypeError for the type.
    """
    result, itself = ("y", "x") if name == "out" else ("the sum", "residual")
    if output_type != x_type:
        raise TypeError(
            f"{name} has type {output_type}, but {result} has x's type {x_type}: "
            f"pass one of type {x_type}"
        )
    if tuple(shape) != tuple(x_shape):
        raise ValueError(
            f"{name} has shape {tuple(shape)}, but {result} has x's shape {tuple(x_shape)}: "
            "pass one of that shape"
        )
    if not writeable:
        raise ValueError(f"{name} is read-only, expected a writeable array: pass a copy of it")
    if overlaps is not None:
        raise ValueError(
            f"{name} overlaps {overlaps} in part of its memory, expected {itself} itself or memory "
            f"of its own: pass {name}={itself} or another array, or omit {name}"
        )


def check_total(is_given: bool, has_residual: bool) -> None:
    """Check that `total` is given only where there is a residual to add. Raises: ValueError."""
    if is_given and not has_residual:
        raise ValueError(
            "total is given without a residual, expected both or none: total = x + residual, "
            "so pass residual=, or omit total"
        )


ACTIVATIONS = ("silu", "sigmoid")


def check_activation(activation: object) -> str:
    """Return the name of a gate's activation. Raises: ValueError for any other."""
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(
            f"activation is {activation!r}, expected 'silu' (also called swish) or 'sigmoid': "
            "pass one of these, or multiply y by the activated gate yourself"
        )
    return activation


# Their largest numbers.
QUANTIZED_TYPES = {"int8": 127.0, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}


def check_quantized_type(name: str) -> str:
    """Return the name of the type of a quantized result. Raises: TypeError for any other."""
    if name not in QUANTIZED_TYPES:
        raise TypeError(
            f"dtype is {name}, expected {_either(tuple(QUANTIZED_TYPES))}: pass one of these"
        )
    return name


def check_scale(scale: Any, x_type: str = "float32") -> float:
    """Return the scale of a quantized result as a float, positive and normal in its own type.

    Raises: ValueError if it is not; TypeError if it is not a number.
    """
    is_number = hasattr(type(scale), "__float__") and not isinstance(scale, bool)
    size = math.prod(getattr(scale, "shape", ()))
    if not is_number or size != 1:
        given = f"has shape {tuple(scale.shape)}" if is_number else f"is {scale!r}"
        raise (ValueError if is_number else TypeError)(
            f"scale {given}, expected one number for all rows: pass for example scale=0.05, or "
            "omit scale for one for each row"
        )
    value = float(scale.item() if hasattr(scale, "item") else scale)
    if not (math.isfinite(value) and value > 0.0):
        raise ValueError(
            f"scale is {value}, expected a positive, finite number: pass the largest |y| / 127, "
            "or omit scale for one for each row"
        )
    type_of_scales = compute_type(x_type)
    if not SMALLEST_NORMAL[type_of_scales] <= value <= LARGEST[type_of_scales]:
        raise ValueError(
            f"scale is {value}, expected a normal number of {type_of_scales}, the type of scales "
            "for this x: pass one, or omit scale for one for each row"
        )
    return value


def check_normalized_shape(normalized_shape: Axis) -> Shape:
    """Return a layer's `normalized_shape`, an int or ints, as a tuple.

    Raises: TypeError if they are not ints; ValueError if there are none, or one is negative.
    """
    message = (
        f"normalized_shape is {normalized_shape!r}, expected an int or a sequence of ints, not "
        "negative: pass for example 768 or (3, 4)"
    )
    sizes = _integers(normalized_shape)
    if sizes is None:
        raise TypeError(message)
    if not sizes or min(sizes) < 0:
        raise ValueError(message)
    return sizes


def check_trailing(layer: str, normalized_shape: Shape, x_shape: Shape) -> None:
    """Check that x's last sizes are the layer's normalized shape. Raises: ValueError."""
    first = len(x_shape) - len(normalized_shape)
    if first < 0 or tuple(x_shape[first:]) != normalized_shape:
        sizes = ", ".join(map(str, normalized_shape))
        raise ValueError(
            f"x has shape {tuple(x_shape)}, but {layer} needs (..., {sizes}): "
            "pass an x whose shape ends so, or create the layer with another normalized_shape"
        )


class Layout(NamedTuple):
    """An array seen as (outer, cols, inner): cols is normalized, each (outer, inner) is a row."""

    outer: int
    cols: int
    inner: int


def layout_of(shape: Sequence[int], axes: Sequence[int]) -> Layout | None:
    """Return `shape` as (outer, cols, inner); None if a kept axis separates normalized ones."""
    sections = _sections(shape, axes)
    if sections is None:
        return None
    return Layout(*(math.prod(shape[axis] for axis in section) for section in sections))


def collapse(
    shape: Sequence[int], strides: Sequence[int], axes: Sequence[int]
) -> tuple[Layout, int, int] | None:
    """Return the array's layout and two strides with which it can be read in place.

    Element (o, c, i) is at o * outer_stride + c * col_stride + i; with inner == 1, col_stride is 1.
    The layout follows from shape and axes alone; the strides decide whether it fits.

    Args:
        shape: sizes; axes of size 1 are ignored.
        strides: in elements; ignored for axes of size 1.
        axes: sorted and not negative.
    Returns: (layout, outer_stride, col_stride); None if the array does not fit without a copy.
    """
    sections = _sections(shape, axes)
    if sections is None:
        return None
    layout = Layout(*(math.prod(shape[axis] for axis in section) for section in sections))
    if 0 in layout:
        return layout, layout.cols * layout.inner, layout.inner
    outer_stride, col_stride, inner_stride = (
        _merged_stride(shape, strides, section) for section in sections
    )
    if layout.outer == 1:
        outer_stride = layout.cols * layout.inner
    if layout.cols == 1:
        col_stride = layout.inner
    if outer_stride is None or col_stride is None:
        return None
    if layout.inner == 1 and col_stride != 1:
        return None
    if layout.inner > 1 and inner_stride != 1:
        return None
    return layout, outer_stride, col_stride


def _sections(
    shape: Sequence[int], axes: Sequence[int]
) -> tuple[list[int], list[int], list[int]] | None:
    normalized = [axis for axis in axes if shape[axis] != 1]
    kept = [axis for axis, size in enumerate(shape) if size != 1 and axis not in axes]
    first, last = (normalized[0], normalized[-1]) if normalized else (axes[0], axes[0])
    before = [axis for axis in kept if axis < first]
    after = [axis for axis in kept if axis > last]
    if len(before) + len(after) < len(kept):
        return None
    return before, normalized, after


def _merged_stride(
    shape: Sequence[int], strides: Sequence[int], section: Sequence[int]
) -> int | None:
    """Return the stride of the axes merged into one, or None if they do not merge."""
    if not section:
        return None
    for axis, following in itertools.pairwise(section):
        if strides[axis] != strides[following] * shape[following]:
            return None
    stride = strides[section[-1]]
    return stride if stride > 0 else None
