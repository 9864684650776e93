"""What a call computes, apart from its tensors; and the checks of its arguments."""

import functools
import struct
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from layernorm import spec


@dataclass(frozen=True)
class Definition:
    """What a call computes, apart from its tensors."""

    axes: tuple[int, ...]  # negative and ascending, where the number of x's axes is known
    eps: float
    centered: bool = True  # False: RMS norm
    zero_centered_weight: bool = False

    @functools.cached_property
    def attributes(self) -> tuple[Any, ...]:
        """The attributes of both operations: names and values alternate."""
        return (
            *("axis", list(self.axes)),
            # A float attribute has 32 bits: too few for eps.
            *("eps_bits", struct.unpack("q", struct.pack("d", self.eps))[0]),
            *("centered", self.centered, "zero_centered_weight", self.zero_centered_weight),
        )


@functools.lru_cache(maxsize=1024)
def define_unchecked(
    axis: int, eps: float, centered: bool, zero_centered_weight: bool
) -> Definition:
    """Define a call over one axis, without a check that x has it: the kernel checks that."""
    return Definition((axis,), spec.check_eps(eps), centered, bool(zero_centered_weight))


def define(
    x: tf.Tensor, axis: spec.Axis, eps: Any, centered: bool, zero_centered_weight: bool
) -> Definition:
    """Check axis and eps, and define the call. Raises: ValueError, TypeError."""
    rank = x.shape.rank
    if rank is None:
        # The kernel will know the rank. Check the rest against 254, the most that a tensor has.
        given = spec.normalize_axes(axis, 254)
        axes = tuple(each - 254 if each >= 127 else each for each in given)
    else:
        axes = tuple(each - rank for each in spec.normalize_axes(axis, rank))
    return Definition(axes, spec.check_eps(eps), centered, bool(zero_centered_weight))


def check(
    x: tf.Tensor, weight: tf.Tensor | None, bias: tf.Tensor | None, definition: Definition
) -> None:
    """Check the types, and the shapes as far as known. Raises: TypeError, ValueError."""
    given = [each if each is None else each.dtype.name for each in (weight, bias)]
    spec.check_types(x.dtype.name, *given, convert=_convert)
    rank = x.shape.rank
    if rank is None:
        return
    axes = [each % rank for each in definition.axes]
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None:
            continue
        expected = tf.TensorShape([x.shape[each] for each in axes])
        if not parameter.shape.is_compatible_with(expected):
            shape, x_shape = (tuple(each.shape.as_list()) for each in (parameter, x))
            spec.check_parameter(name, shape, x_shape, axes)


def _convert(name: str, type_name: str) -> str:
    return f"tf.cast({name}, tf.{type_name})"
