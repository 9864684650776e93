"""The definition in Keras's operations, for backends that no front end serves."""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from layernorm import spec
from layernorm.keras import beside


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
    eps: float = 1e-5,
    zero_centered_weight: bool = False,
) -> Any:
    """Return y = (x - mean) / sqrt(var + eps) * weight + bias, computed in float32 or float64.

    With a residual return (y, total): y of total = x + residual. With a gate y * act(gate), or y of
    x * act(gate).
    """
    axes = spec.normalize_axes(axis, len(x.shape))

    def norm(d: Any) -> Any:
        d = d - ops.mean(d, axes, keepdims=True)
        d = d - ops.mean(d, axes, keepdims=True)  # the rounding error of the first mean
        return _scaled(d, weight, bias, axes, eps, zero_centered_weight)

    return _results(norm, x, residual, gate, activation, norm_before_gate)


def rms_norm(
    x: Any,
    weight: Any = None,
    *,
    residual: Any = None,
    gate: Any = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: float = 1e-6,
    zero_centered_weight: bool = False,
) -> Any:
    """Return y = x / sqrt(mean(x**2) + eps) * weight, computed in float32 or float64.

    With a residual and a gate as `layer_norm` does.
    """
    axes = spec.normalize_axes(axis, len(x.shape))

    def norm(d: Any) -> Any:
        return _scaled(d, weight, None, axes, eps, zero_centered_weight)

    return _results(norm, x, residual, gate, activation, norm_before_gate)


def quantized_layer_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    dtype: str,
    scale: Any = None,
    axis: spec.Axis = -1,
    **options: Any,
) -> Any:
    """Return (q, scales), or with a scale q, as `layernorm.keras.quantized_layer_norm` does."""
    return _quantized(layer_norm(x, weight, bias, axis=axis, **options), dtype, scale, axis)


def quantized_rms_norm(
    x: Any,
    weight: Any = None,
    *,
    dtype: str,
    scale: Any = None,
    axis: spec.Axis = -1,
    **options: Any,
) -> Any:
    """Return (q, scales), or with a scale q, as `layernorm.keras.quantized_rms_norm` does."""
    return _quantized(rms_norm(x, weight, axis=axis, **options), dtype, scale, axis)


def _quantized(y: Any, dtype: str, scale: Any, axis: spec.Axis) -> Any:
    y = ops.stop_gradient(beside.widened(y))
    most = spec.QUANTIZED_TYPES[dtype]
    if scale is None:
        axes = spec.normalize_axes(axis, len(y.shape))
        smallest = spec.SMALLEST_NORMAL[keras.backend.standardize_dtype(y.dtype)]
        largest = ops.max(ops.abs(y), axes, keepdims=True)
        # XLA would multiply by the reciprocal of a number.
        scales = ops.maximum(largest / ops.full_like(largest, most), smallest)
        # XLA's maximum may lose a NaN.
        scales = ops.where(ops.any(ops.isnan(y), axes, keepdims=True), math.nan, scales)
    elif ops.is_tensor(scale):
        scales = ops.stop_gradient(ops.cast(ops.reshape(scale, ()), y.dtype))
    else:
        scales = ops.convert_to_tensor(
            spec.check_scale(scale, keras.backend.standardize_dtype(y.dtype)), y.dtype
        )
    quotient = y / scales
    if dtype == "int8":
        inside, of_nan = ops.round(ops.clip(quotient, -128.0, 127.0)), ops.zeros_like(y)
    else:
        inside, of_nan = ops.clip(quotient, -most, most), quotient
    q = ops.cast(ops.where(ops.isnan(quotient), of_nan, inside), dtype)
    return (q, scales) if scale is None else q


def _results(
    norm: Callable[[Any], Any],
    x: Any,
    residual: Any,
    gate: Any,
    activation: str,
    norm_before_gate: bool,
) -> Any:
    """Return y or (y, total); `norm` takes and returns the compute type."""
    total = x if residual is None else beside.add(x, residual)
    if gate is None:
        y = norm(beside.widened(total))
    else:
        y = beside.gated(norm, total, gate, activation, norm_before_gate)
    y = ops.cast(y, x.dtype)
    return y if residual is None else (y, total)


def _scaled(
    d: Any,
    weight: Any,
    bias: Any,
    axes: tuple[int, ...],
    eps: float,
    zero_centered_weight: bool,
) -> Any:
    y = d * ops.rsqrt(ops.mean(d * d, axes, keepdims=True) + spec.check_eps(eps))
    if weight is not None:
        weight = _spread("weight", ops.cast(weight, d.dtype), d.shape, axes)
        y = y * (1 + weight if zero_centered_weight else weight)
    if bias is not None:
        y = y + _spread("bias", ops.cast(bias, d.dtype), d.shape, axes)
    return y


def _spread(name: str, parameter: Any, x_shape: spec.Shape, axes: tuple[int, ...]) -> Any:
    """Check a parameter's shape, and reshape a normalized one so that it broadcasts against x."""
    shape = tuple(parameter.shape)
    spec.check_parameter(name, shape, tuple(x_shape), axes)
    if shape != spec.normalized_shape(x_shape, axes):
        return parameter
    return ops.reshape(parameter, spec.parameter_shape(x_shape, axes, ()))
