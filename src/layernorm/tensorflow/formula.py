"""The definition in TensorFlow's operations: where no kernel serves, and for higher derivatives.

It computes in float64, which keeps narrower types accurate at large means and magnitudes. A float64
row is first scaled by a power of two, and centered twice. The portable formula computes narrower
types in float32, because runtimes such as TensorFlow Lite have no float64; its rows are centered
twice, and scaled after that.
"""

import math

import tensorflow as tf

from layernorm import spec
from layernorm.tensorflow import parameters
from layernorm.tensorflow.arguments import Definition

_LARGEST_EXPONENT = 1534  # biased, of the scale: 2**511, whose square is finite
_MOST = 800.0  # the sigmoid of -_MOST is 0


def y_of(
    x: tf.Tensor,
    weight: tf.Tensor | None,
    bias: tf.Tensor | None,
    definition: Definition,
    gate: tf.Tensor | None = None,
    *,
    portable: bool = False,
) -> tf.Tensor:
    """Return y, which TensorFlow can differentiate any number of times."""
    d = tf.cast(x, _wide_type(x, portable))
    if definition.gating is None:
        return tf.cast(_normalize(d, x, weight, bias, definition, portable), x.dtype)
    activation, norm_before_gate = definition.gating
    z = tf.cast(gate, d.dtype)
    if not (x.shape.is_fully_defined() and z.shape.is_fully_defined()):
        z = tf.add_n([z, tf.zeros_like(d)])  # unlike *, it does not broadcast
    act = _activate(z, activation)
    if norm_before_gate:
        y = _normalize(d, x, weight, bias, definition, portable) * act
    else:
        y = _normalize(d * act, x, weight, bias, definition, portable)
    return tf.cast(y, x.dtype)


def y_and_total_of(
    x: tf.Tensor,
    residual: tf.Tensor,
    weight: tf.Tensor | None,
    bias: tf.Tensor | None,
    definition: Definition,
    *,
    portable: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return total = x + residual, and y, the norm of the stored total, with its gradient."""
    x_type, wide = x.dtype, _wide_type(x, portable)
    d = tf.add_n([tf.cast(x, wide), tf.cast(residual, wide)])  # unlike +, it does not broadcast
    total = tf.cast(d, x_type)
    # The value is total's, but the gradients of y and total are added before they are rounded.
    d += tf.stop_gradient(tf.cast(total, wide) - d)
    return tf.cast(_normalize(d, total, weight, bias, definition, portable), x_type), total


def quantize(
    y: tf.Tensor,
    dtype: tf.DType,
    scale: tf.Tensor | None,
    axes: tuple[int, ...],
    *,
    portable: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return q = y / scale in 8 bits, and the scale or those of the rows.

    TensorFlow rounds float64 to float8 twice, through float32, and flushes subnormal numbers. XLA
    multiplies by the reciprocal of a constant: in float64, float32's quotients are right then too.
    """
    wide, compute = _wide_type(y, portable), tf.as_dtype(spec.compute_type(y.dtype.name))
    d = tf.cast(y, wide)
    most = spec.QUANTIZED_TYPES[dtype.name]
    if scale is None:
        scale = tf.cast(tf.reduce_max(tf.abs(d), axes, keepdims=True) / most, compute)
        scale = tf.maximum(scale, spec.SMALLEST_NORMAL[compute.name])
        # XLA's maximum may lose a NaN.
        has_nan = tf.reduce_any(tf.not_equal(d, d), axes, keepdims=True)
        scale = tf.where(has_nan, tf.constant(math.nan, compute), scale)
    else:
        scale = tf.reshape(scale, [])
    quotient = tf.cast(d / tf.cast(scale, wide), compute)
    q = tf.clip_by_value(quotient, -128.0 if dtype == tf.int8 else -most, most)
    if dtype == tf.int8:
        q, of_nan = tf.round(q), tf.zeros_like(q)
    else:
        of_nan = quotient
    return tf.cast(tf.where(tf.equal(quotient, quotient), q, of_nan), dtype), scale


def _activate(z: tf.Tensor, activation: str) -> tf.Tensor:
    """Return silu(z) or sigmoid(z), whose derivatives are right at infinity too."""
    if activation == "sigmoid":
        return _sigmoid(z)
    most = tf.constant(_MOST, z.dtype)
    is_large = z > most
    bounded = tf.where(is_large, most, tf.where(z < -most, -most, z))
    return tf.where(is_large, z, bounded * _sigmoid(bounded))


def _sigmoid(z: tf.Tensor) -> tf.Tensor:
    # TensorFlow's derivative, s * (1 - s), loses the digits of a small 1 - s.
    is_positive = z > 0
    s = tf.sigmoid(tf.where(is_positive, -z, z))
    return tf.where(is_positive, 1 - s, s)


def _wide_type(x: tf.Tensor, portable: bool) -> tf.DType:
    return tf.float32 if portable and x.dtype != tf.float64 else tf.float64


def _normalize(
    d: tf.Tensor,
    x: tf.Tensor,
    weight: tf.Tensor | None,
    bias: tf.Tensor | None,
    definition: Definition,
    portable: bool,
) -> tf.Tensor:
    """Return the norm of d, in its type. d is x in a wider type, or x * act(gate)."""
    if portable and x.dtype != tf.float64:
        y = _portable_xhat(d, definition)
    else:
        eps = tf.constant(definition.eps, tf.float64)
        if x.dtype == tf.float64:
            scale = _scale(d, definition.axes)
            d, eps = d * scale, eps * scale * scale
        y = _xhat(d, eps, definition, x.dtype)
    if weight is not None:
        weight = parameters.spread(tf.cast(weight, y.dtype), x, definition.axes)
        y *= 1 + weight if definition.zero_centered_weight else weight
    if bias is not None:
        y += parameters.spread(tf.cast(bias, y.dtype), x, definition.axes)
    return y


def _portable_xhat(d: tf.Tensor, definition: Definition) -> tf.Tensor:
    def mean(v: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(v, definition.axes, keepdims=True)

    if definition.centered:
        d = d - mean(d)
        d = d - mean(d)  # the rounding error of the first mean
    largest = tf.reduce_max(tf.abs(tf.stop_gradient(d)), definition.axes, keepdims=True)
    scale = tf.maximum(largest, math.sqrt(definition.eps))  # squares neither overflow nor vanish
    root = math.sqrt(definition.eps) / scale
    d = d / scale
    return d * tf.math.rsqrt(mean(d * d) + root * root)


def _xhat(d: tf.Tensor, eps: tf.Tensor, definition: Definition, x_type: tf.DType) -> tf.Tensor:
    def mean(v: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(v, definition.axes, keepdims=True)

    if definition.centered:
        d = d - mean(d)
        if x_type == tf.float64:
            d = d - mean(d)  # the rounding error of the first mean
    return d * tf.math.rsqrt(mean(d * d) + eps)


def _scale(x: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
    """Return the power of two that brings each row's largest number near 1."""
    largest = tf.reduce_max(tf.abs(tf.stop_gradient(x)), axes, keepdims=True)
    exponent = tf.bitwise.right_shift(tf.bitcast(largest, tf.int64), tf.constant(52, tf.int64))
    exponent = tf.clip_by_value(2046 - exponent, 1, _LARGEST_EXPONENT)
    return tf.bitcast(tf.bitwise.left_shift(exponent, tf.constant(52, tf.int64)), tf.float64)
