"""The shapes of weight and bias beside x's, which may be unknown until the graph runs.

Weight and bias have the normalized shape, or broadcast against x, aligned right. Where x's shape
does not tell, one with as many axes as are normalized has the normalized shape.
"""

from typing import Any

import tensorflow as tf

from layernorm import spec


def checked(
    name: str, parameter: tf.Tensor | None, x: tf.Tensor, axes: tuple[int, ...]
) -> tf.Tensor | None:
    """Check a parameter's shape, as far as it and x's are known. Raises: ValueError.

    Returns: the parameter; with all of x's axes if it broadcasts against x, but has as many axes as
        are normalized.
    """
    if parameter is None:
        return None
    rank, own = x.shape.rank, parameter.shape.rank
    if rank is None or own is None:
        return parameter
    x_shape, shape = (spec.symbolic_shape(each.shape.as_list()) for each in (x, parameter))
    in_front = [each % rank for each in axes]
    spec.check_parameter(name, shape, x_shape, in_front, reshape=_reshape)
    if own != len(axes) or shape == spec.normalized_shape(x_shape, in_front):
        return parameter
    return tf.reshape(parameter, [1] * (rank - own) + _sizes(parameter))


def spread(parameter: tf.Tensor, x: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
    """Return the parameter in a shape that broadcasts against x."""
    rank, own = x.shape.rank, parameter.shape.rank
    if rank is not None:
        axes = _from_the_end(axes, rank)
    if own not in (None, len(axes)) or axes == tuple(range(-len(axes), 0)):
        return parameter
    return tf.reshape(parameter, sizes_beside(parameter, x, axes))


def sizes_beside(parameter: tf.Tensor, x: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
    """Return the parameter's sizes with all of x's axes: 1 along those that it does not have."""
    rank, own = x.shape.rank, parameter.shape.rank
    if rank is not None and own is not None:
        sizes = _sizes(parameter)
        if own != len(axes):
            return tf.stack([1] * (rank - own) + sizes)
        along = dict(zip(_from_the_end(axes, rank), sizes, strict=True))
        return tf.stack([along.get(each, 1) for each in range(-rank, 0)])
    rank, sizes = tf.rank(x), tf.shape(parameter)
    # tf.equal: in graphs of version 1, == compares the tensors' identities.
    is_normalized = tf.equal(tf.range(rank)[:, None], tf.constant(axes) % rank)
    is_normalized = tf.reduce_any(is_normalized, axis=1)
    normalized = tf.where(is_normalized, tf.shape(x), 1)
    broadcast = tf.concat([tf.ones([rank - tf.size(sizes)], tf.int32), sizes], axis=0)
    return tf.where(tf.equal(tf.size(sizes), len(axes)), normalized, broadcast)


def _from_the_end(axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return tuple(sorted(each % rank - rank for each in axes))


def _sizes(parameter: tf.Tensor) -> list[Any]:
    """Return ints, and tensors where they are not known."""
    known = parameter.shape.as_list()
    if None not in known:
        return known
    sizes = tf.unstack(tf.shape(parameter), len(known))
    return [size if each is None else each for each, size in zip(known, sizes, strict=True)]


def _reshape(name: str, shape: tuple[int, ...]) -> str:
    return f"tf.reshape({name}, {shape})"
