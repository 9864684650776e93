"""What a call computes, apart from its tensors; and the checks of its arguments."""

import functools
import struct
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from layernorm import spec

# What converts what tf.convert_to_tensor does not take.
_REMEDIES = {
    "RaggedTensor": "{name}.to_tensor()",
    "SparseTensor": "tf.sparse.to_dense({name})",
    "IndexedSlices": "tf.math.unsorted_segment_sum({name}.values, {name}.indices, rows)",
    "KerasTensor": "it to a function of layernorm.keras",
    "TensorArray": "{name}.stack()",
}


@dataclass(frozen=True)
class Definition:
    """What a call computes, apart from its tensors."""

    axes: tuple[int, ...]  # negative and ascending, where the number of x's axes is known
    eps: float
    centered: bool = True  # False: RMS norm
    zero_centered_weight: bool = False
    gating: tuple[str, bool] | None = None  # with a gate: activation, norm_before_gate

    @functools.cached_property
    def attributes(self) -> tuple[Any, ...]:
        """The attributes of both operations: names and values alternate."""
        of_gate: tuple[Any, ...] = ()
        if self.gating is not None:
            activation, norm_before_gate = self.gating
            of_gate = ("silu", activation == "silu", "norm_before_gate", norm_before_gate)
        return (
            *("axis", list(self.axes)),
            # A float attribute has 32 bits: too few for eps.
            *("eps_bits", struct.unpack("q", struct.pack("d", self.eps))[0]),
            *("centered", self.centered, "zero_centered_weight", self.zero_centered_weight),
            *of_gate,
        )


@functools.lru_cache(maxsize=1024)
def define_unchecked(
    axis: int,
    eps: float,
    centered: bool,
    zero_centered_weight: bool,
    gating: tuple[str, bool] | None,
) -> Definition:
    """Define a call over one axis, without a check that x has it: the kernel checks that."""
    return Definition((axis,), spec.check_eps(eps), centered, bool(zero_centered_weight), gating)


def define(
    x: tf.Tensor,
    axis: spec.Axis,
    eps: Any,
    centered: bool,
    zero_centered_weight: bool,
    gating: tuple[str, bool] | None,
) -> Definition:
    """Check axis and eps, and define the call. Raises: ValueError, TypeError."""
    rank = x.shape.rank
    if rank == 0:
        raise ValueError(
            "x has no axes (shape ()), but layer norm needs at least one to normalize over: "
            "give x a shape, for example tf.reshape(x, [1])"
        )
    if rank is None:
        # The kernel will know the rank. Check the rest against 254, the most that a tensor has.
        given = spec.normalize_axes(axis, 254)
        axes = tuple(each - 254 if each >= 127 else each for each in given)
    else:
        axes = tuple(each - rank for each in spec.normalize_axes(axis, rank))
    return Definition(axes, spec.check_eps(eps), centered, bool(zero_centered_weight), gating)


def check_gating(activation: Any, norm_before_gate: Any) -> tuple[str, bool]:
    """Return how a gate is applied, for `Definition`. Raises: ValueError."""
    return spec.check_activation(activation), bool(norm_before_gate)


def check_quantized_type(dtype: Any) -> tf.DType:
    """Return the type of a quantized result, for a name or a type. Raises: TypeError."""
    name = dtype if isinstance(dtype, str) else tf.as_dtype(dtype).name
    return tf.as_dtype(spec.check_quantized_type(name))


def to_scale(scale: Any, x: tf.Tensor) -> tf.Tensor | None:
    """Return the scale of a quantized result as a tensor of the compute type.

    A number is checked; of a tensor the shape is, as far as it is known. Raises: ValueError,
    TypeError.
    """
    if scale is None:
        return None
    compute_type = spec.compute_type(x.dtype.name)
    if not tf.is_tensor(scale):
        return tf.constant(spec.check_scale(scale, compute_type), compute_type)
    scale = to_tensor("scale", scale)
    if scale.shape.num_elements() not in (None, 1):
        with tf.init_scope():
            spec.check_scale(tf.ones(scale.shape))  # which raises
    return tf.cast(scale, compute_type)


def check_types(x: tf.Tensor, weight: tf.Tensor | None, bias: tf.Tensor | None) -> None:
    """Check the types. Raises: TypeError."""
    given = [each if each is None else each.dtype.name for each in (weight, bias)]
    spec.check_types(x.dtype.name, *given, convert=_convert)


def widens(x: tf.Tensor, residual: tf.Tensor) -> bool:
    """Tell whether x is 16-bit and the residual float32, so that x is to be widened first."""
    return residual.dtype == tf.float32 and x.dtype in (tf.float16, tf.bfloat16)


def check_as_x(name: str, given: tf.Tensor, x: tf.Tensor) -> None:
    """Check that a residual or gate has x's type and shape, as far as they are known.

    Raises: TypeError, ValueError.
    """
    spec.check_same_type(name, given.dtype.name, x.dtype.name, convert=_convert)
    if given.shape.rank is None or x.shape.rank is None:
        return
    shape, x_shape = (spec.symbolic_shape(each.shape.as_list()) for each in (given, x))
    spec.check_shape(name, shape, x_shape, of=f"x of shape {x_shape}")


def to_tensor(name: str, given: Any) -> tf.Tensor:
    """Convert what is not a tensor. Raises: TypeError; for lists and arrays, TensorFlow's error."""
    try:
        return tf.convert_to_tensor(given)
    except (TypeError, ValueError) as error:
        if _is_of_numbers(given):
            raise
        kind = type(given).__name__
        remedy = _REMEDIES.get(kind, "tf.constant of its numbers").format(name=name)
        raise TypeError(
            f"{name} is of type {kind}, expected a tensor, or what tf.convert_to_tensor takes: "
            f"pass {remedy}"
        ) from error


def to_parameter(name: str, given: Any, x: tf.Tensor) -> tf.Tensor | None:
    """Convert weight or bias. Lists and NumPy's arrays take a type that is allowed beside x's."""
    if given is None:
        return None
    allowed = spec.parameter_types(x.dtype.name)
    tensor = to_tensor(name, given)
    if _is_of_numbers(given) and tensor.dtype.name not in allowed:
        return tf.convert_to_tensor(given, tf.as_dtype(allowed[-1]))
    return tensor


def _is_of_numbers(given: Any) -> bool:
    return isinstance(given, list | tuple) or type(given).__module__ == "numpy"


def axes_of_values(x: tf.RaggedTensor, axis: spec.Axis) -> tuple[int, ...]:
    """Return the axes of x.flat_values that are `axis` of x, counted from the end.

    Raises: TypeError if one of them is ragged, or is the axis of the batch; those of `define`.
    """
    rank = x.shape.rank
    axes = tuple(each - rank for each in spec.normalize_axes(axis, rank))
    ragged = x.ragged_rank
    if min(axes) < ragged + 1 - rank:
        raise TypeError(
            f"x is a RaggedTensor of {rank} axes, whose rows differ up to axis {ragged}, and axis "
            f"is {axis!r}, expected axes after that: pass one, or x.to_tensor()"
        )
    return axes


def values_beside(name: str, given: Any, x: tf.RaggedTensor) -> tf.Tensor | None:
    """Return the values of a residual or gate that go with those of x.

    Raises: TypeError if it is not as ragged as x; tf.errors.InvalidArgumentError if its rows have
        other lengths.
    """
    if given is None:
        return None
    if not isinstance(given, tf.RaggedTensor) or given.ragged_rank != x.ragged_rank:
        raise TypeError(
            f"{name} is of type {type(given).__name__}, but x is a RaggedTensor with "
            f"{x.ragged_rank} ragged axes: pass a {name} like that, or x.to_tensor()"
        )
    checks = [
        tf.debugging.assert_equal(*splits, f"layernorm: {name} needs the row lengths of x")
        for splits in zip(given.nested_row_splits, x.nested_row_splits, strict=True)
    ]
    with tf.control_dependencies([each for each in checks if each is not None]):
        return tf.identity(given.flat_values)


def _convert(name: str, type_name: str) -> str:
    return f"tf.cast({name}, tf.{type_name})"
