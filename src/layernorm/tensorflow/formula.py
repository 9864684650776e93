"""The definition in TensorFlow's own operations: where the kernels are not, and to differentiate.

All of it is worked out in float64, so that large means and magnitudes do no harm to the narrower
types; a float64 row is first scaled by a power of two, and its mean taken twice.
"""

import tensorflow as tf

from layernorm.tensorflow.arguments import Definition

_LARGEST_EXPONENT = 1534  # biased, of the scale: 2**511, whose square is finite


def y_of(
    x: tf.Tensor, weight: tf.Tensor | None, bias: tf.Tensor | None, definition: Definition
) -> tf.Tensor:
    """Return y, differentiable as often as TensorFlow can."""
    wide = tf.cast(x, tf.float64)
    eps = tf.constant(definition.eps, tf.float64)
    if x.dtype == tf.float64:
        scale = _scale(wide, definition.axis)
        wide, eps = wide * scale, eps * scale * scale
    y = _xhat(wide, eps, definition, x.dtype)
    if weight is not None:
        weight = _spread(tf.cast(weight, tf.float64), definition.axis)
        y *= 1 + weight if definition.zero_centered_weight else weight
    if bias is not None:
        y += _spread(tf.cast(bias, tf.float64), definition.axis)
    return tf.cast(y, x.dtype)


def _xhat(wide: tf.Tensor, eps: tf.Tensor, definition: Definition, x_type: tf.DType) -> tf.Tensor:
    def mean(v: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(v, definition.axis, keepdims=True)

    if definition.centered:
        wide = wide - mean(wide)
        if x_type == tf.float64:
            wide = wide - mean(wide)  # what the first mean lost to rounding
    return wide * tf.math.rsqrt(mean(wide * wide) + eps)


def _scale(wide: tf.Tensor, axis: tuple[int, ...]) -> tf.Tensor:
    """Return the power of two that brings each row's largest number near 1."""
    largest = tf.reduce_max(tf.abs(tf.stop_gradient(wide)), axis, keepdims=True)
    exponent = tf.bitwise.right_shift(tf.bitcast(largest, tf.int64), tf.constant(52, tf.int64))
    exponent = tf.clip_by_value(2046 - exponent, 1, _LARGEST_EXPONENT)
    return tf.bitcast(tf.bitwise.left_shift(exponent, tf.constant(52, tf.int64)), tf.float64)


def _spread(parameter: tf.Tensor, axis: tuple[int, ...]) -> tf.Tensor:
    """Shape a parameter so that it broadcasts over x's rows."""
    if axis == tuple(range(-len(axis), 0)):
        return parameter
    if max(axis) >= 0:
        raise ValueError(
            f"axis is {axis}, but how many axes x has is not known: count from the end, as in "
            "axis=-1"
        )
    sizes = tf.unstack(tf.shape(parameter), len(axis))
    along = dict(zip(axis, sizes, strict=True))
    return tf.reshape(parameter, [along.get(each, 1) for each in range(min(axis), 0)])
