"""Layer norm and RMS norm of TensorFlow's tensors."""

from typing import Any, SupportsFloat

import tensorflow as tf
from tensorflow.python.framework import ops
from tensorflow.python.ops import control_flow_util

from layernorm import spec
from layernorm.tensorflow import (
    arguments,
    c_api,
    formula,
    gradients,
    operators,
    parameters,
    portability,
)

gradients.register()


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
    zero_centered_weight: bool = False,
) -> Any:
    """Normalize `x` over `axis` to zero mean and unit variance, then scale and shift.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with the biased variance.

    With a gate that is times act(gate); or if not norm_before_gate, the norm of x * act(gate).

    Args:
        x: a tensor of float16, bfloat16, float32 or float64, or what tf.convert_to_tensor takes;
            its shape may be partly or wholly unknown. Or a tf.RaggedTensor, with `axis` beyond its
            ragged axes; weight and bias then go with its flat_values.
        weight, bias: tensors or variables with the normalized shape (x's sizes along `axis`, in
            x's order), or of a shape that broadcasts against x's, with x's sizes along `axis`; or
            None. Of x's type, or both float32 for 16-bit x. Where the number of x's axes is not
            known, a parameter with as many axes as are normalized has the normalized shape.
        residual: a tensor of x's shape and type to add first: y is the norm of x + residual. Or
            float32 for 16-bit x: a stream that is kept in float32, as is total then.
        gate: a tensor of x's shape and type.
        activation: act, "silu" or "sigmoid"; silu(z) = z * sigmoid(z).
        norm_before_gate: normalize x before the gate is applied. Like `activation` ignored without
            a gate.
        axis: int or ints; need not be the last, nor adjacent.
        eps: added to the variance, in units of x squared.
        zero_centered_weight: multiply by 1 + weight; no effect without a weight.
    Returns: y, with x's shape and type. With a residual (y, total): total is x + residual, rounded
        to the residual's type, and y the norm of that.
    Raises: ValueError for shapes, axes and eps; TypeError for types; for shapes that are unknown
        until the graph runs, tf.errors.InvalidArgumentError.
    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    gating = None if gate is None else arguments.check_gating(activation, norm_before_gate)
    options = (axis, eps, True, zero_centered_weight, gating)
    return _norm(x, weight, bias, residual, gate, *options)


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
    zero_centered_weight: bool = False,
) -> Any:
    """Divide `x` by its root mean square over `axis`, then scale.

    y = x / sqrt(mean(x**2) + eps) * weight

    Args:
        x, weight, residual, gate, activation, norm_before_gate, axis, zero_centered_weight: as in
            `layer_norm`.
        eps: added to the mean square, in units of x squared.
    Returns: y, or (y, total), as `layer_norm` does.
    Raises: as `layer_norm` does.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    gating = None if gate is None else arguments.check_gating(activation, norm_before_gate)
    options = (axis, eps, False, zero_centered_weight, gating)
    return _norm(x, weight, None, residual, gate, *options)


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
    """Return the layer norm of `x` in 8 bits, and the scale of each row: y is about q * scale.

    q = y / scale, rounded to nearest, ties to even, and saturated, where y is what `layer_norm`
    returns, rounded to x's type. The scale of a row is max|y| / m, where m is the largest number of
    `dtype`, but at least the smallest normal number of the scale's type: so zeros give zeros. A row
    with a NaN has the scale NaN; a NaN becomes 0 in int8, NaN in float8. There is no gradient, as
    of tf.stop_gradient.

    Args:
        x, weight, bias, axis, eps, zero_centered_weight: as in `layer_norm`.
        dtype: of q: tf.int8 (m = 127), or of tf.dtypes.experimental float8_e4m3fn (448) or
            float8_e5m2 (57344); or the name.
        scale: for all rows: a positive number, or a tensor with one, whose value is not checked.
            Then int8 goes from -128 to 127.
    Returns: (q, scales): q of x's shape; scales of x's shape with the normalized axes kept as size
        1, float32 (float64 for float64 x). With a given scale q alone.
    Raises: ValueError for shapes, axes, eps and scale; TypeError for types; for shapes that are
        unknown until the graph runs, tf.errors.InvalidArgumentError.
    """
    options = (dtype, scale, axis, eps, True, zero_centered_weight)
    return _quantized_norm(x, weight, bias, *options)


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
    """Return the RMS norm of `x` in 8 bits, and the scale of each row, as `quantized_layer_norm`.

    Args: as in `rms_norm` and `quantized_layer_norm`.
    Returns: (q, scales), or with a given scale q.
    Raises: as `quantized_layer_norm` does.
    """
    options = (dtype, scale, axis, eps, False, zero_centered_weight)
    return _quantized_norm(x, weight, None, *options)


def _quantized_norm(
    x: Any,
    weight: Any,
    bias: Any,
    dtype: Any,
    scale: Any,
    axis: Any,
    eps: Any,
    centered: bool,
    zero_centered_weight: bool,
) -> Any:
    dtype = arguments.check_quantized_type(dtype)
    if isinstance(x, tf.RaggedTensor):
        axis = arguments.axes_of_values(x, axis)
        options = (dtype, scale, axis, eps, centered, zero_centered_weight)
        results = _quantized_norm(x.flat_values, weight, bias, *options)
        return tf.nest.map_structure(x.with_flat_values, results)
    x = arguments.to_tensor("x", x)
    definition = arguments.define(x, axis, eps, centered, zero_centered_weight, None)
    weight = arguments.to_parameter("weight", weight, x)
    bias = arguments.to_parameter("bias", bias, x)
    arguments.check_types(x, weight, bias)
    given = arguments.to_scale(scale, x)
    weight = parameters.checked("weight", weight, x, definition.axes)
    bias = parameters.checked("bias", bias, x, definition.axes)
    x, weight, bias, given = (
        None if each is None else tf.stop_gradient(each) for each in (x, weight, bias, given)
    )
    portable = _is_portable()
    if c_api.serves() and not portable and not _is_for_xla():
        q, scales = operators.quantized(x, weight, bias, given, dtype, definition)
    else:
        y = formula.y_of(x, weight, bias, definition, portable=portable)
        q, scales = formula.quantize(y, dtype, given, definition.axes, portable=portable)
    if given is not None:
        return q
    if x.shape.rank is not None and not tf.executing_eagerly():
        sizes = enumerate(x.shape.as_list(), -x.shape.rank)
        scales.set_shape([1 if axis in definition.axes else size for axis, size in sizes])
    return q, scales


def _norm(
    x: Any,
    weight: Any,
    bias: Any,
    residual: Any,
    gate: Any,
    axis: Any,
    eps: Any,
    centered: bool,
    zero_centered_weight: bool,
    gating: tuple[str, bool] | None,
) -> Any:
    if not isinstance(x, tf.Tensor):
        if isinstance(x, tf.RaggedTensor):
            axis = arguments.axes_of_values(x, axis)
            addend = arguments.values_beside("residual", residual, x)
            gate = arguments.values_beside("gate", gate, x)
            options = (axis, eps, centered, zero_centered_weight, gating)
            results = _norm(x.flat_values, weight, bias, addend, gate, *options)
            return tf.nest.map_structure(x.with_flat_values, results)
        x = arguments.to_tensor("x", x)
    if residual is not None and not isinstance(residual, tf.Tensor):
        residual = arguments.to_tensor("residual", residual)
    if gate is not None and not isinstance(gate, tf.Tensor):
        gate = arguments.to_tensor("gate", gate)
    both = residual is not None and gate is not None
    if (
        tf.executing_eagerly()
        and type(axis) is int
        and type(eps) is float
        and c_api.serves()
        and not both
    ):
        definition = arguments.define_unchecked(axis, eps, centered, zero_centered_weight, gating)
        results = operators.try_forward(x, weight, bias, residual, gate, definition)
        if results is not None:
            return results
    definition = arguments.define(x, axis, eps, centered, zero_centered_weight, gating)
    weight = arguments.to_parameter("weight", weight, x)
    bias = arguments.to_parameter("bias", bias, x)
    arguments.check_types(x, weight, bias)
    if gate is not None:
        arguments.check_as_x("gate", gate, x)
    options = (axis, eps, centered, zero_centered_weight, gating)
    if residual is not None and arguments.widens(x, residual):
        wide = (
            None if each is None else tf.cast(each, tf.float32) for each in (x, weight, bias, gate)
        )
        x_wide, weight, bias, gate = wide
        y, total = _norm(x_wide, weight, bias, residual, gate, *options)
        return tf.cast(y, x.dtype), total
    if residual is not None:
        arguments.check_as_x("residual", residual, x)
    if both:
        total = tf.add_n([x, residual])  # unlike +, it does not broadcast
        return _norm(total, weight, bias, None, gate, *options), total
    weight = parameters.checked("weight", weight, x, definition.axes)
    bias = parameters.checked("bias", bias, x, definition.axes)
    portable = _is_portable()
    if c_api.serves() and not portable and not _is_for_xla():
        return operators.forward(x, weight, bias, residual, gate, definition)
    if residual is None:
        return formula.y_of(x, weight, bias, definition, gate, portable=portable)
    return formula.y_and_total_of(x, residual, weight, bias, definition, portable=portable)


def _is_portable() -> bool:
    """Tell whether the graph that is being built must run without this package."""
    return not tf.executing_eagerly() and portability.is_wanted()


def _is_for_xla() -> bool:
    """Tell whether XLA will compile the graph that is being built: it has no kernels of ours."""
    if tf.executing_eagerly():
        return False
    return bool(control_flow_util.GraphOrParentsInXlaContext(ops.get_default_graph()))
