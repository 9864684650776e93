"""Our operations, called eagerly and in graphs.

    LayerNorm               x, weight, bias                     -> y, statistics
    LayerNormBackward       dy, x, statistics, weight           -> dx, dweight, dbias
    LayerNormOfSum          x, residual, weight, bias           -> y, statistics, total
    LayerNormOfSumBackward  dy, total, statistics, dtotal, weight -> dx, dweight, dbias
    GatedLayerNorm          x, gate, weight, bias               -> y, statistics
    GatedLayerNormBackward  dy, x, statistics, gate, weight, bias -> dx, dgate, dweight, dbias
    QuantizedLayerNorm      x, scale, weight, bias              -> q, scales

The compiled module defines them (native/bindings/tensorflow/operators.cc). There weight and bias
are lists of one tensor or none, and so are their gradients. In the backward, dweight and dbias have
the weight's sizes, or the normalized ones if there is no weight. dx is the gradient of the residual
too. With a gate dbias has the bias's sizes, and weight and bias vary along the same axes. Of scale
and scales one is empty.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import context, core, execute
from tensorflow.python.framework import op_def_library, ops

from layernorm import spec
from layernorm.tensorflow.arguments import Definition

Tensors = Sequence[tf.Tensor]

LAYER_NORM = "LayerNorm__import_layernorm_tensorflow"
BACKWARD = "LayerNormBackward__import_layernorm_tensorflow"
OF_SUM = "LayerNormOfSum__import_layernorm_tensorflow"
OF_SUM_BACKWARD = "LayerNormOfSumBackward__import_layernorm_tensorflow"
GATED = "GatedLayerNorm__import_layernorm_tensorflow"
GATED_BACKWARD = "GatedLayerNormBackward__import_layernorm_tensorflow"
QUANTIZED = "QuantizedLayerNorm__import_layernorm_tensorflow"

# The inputs of each, with the attribute for their type, or for the length of a list (of type P).
_INPUTS = {
    LAYER_NORM: {"x": "T", "weight": "weights", "bias": "biases"},
    BACKWARD: {"dy": "T", "x": "T", "statistics": "S", "weight": "weights"},
    OF_SUM: {"x": "T", "residual": "T", "weight": "weights", "bias": "biases"},
    OF_SUM_BACKWARD: {
        **{"dy": "T", "total": "T", "statistics": "S", "dtotal": "T"},
        "weight": "weights",
    },
    GATED: {"x": "T", "gate": "T", "weight": "weights", "bias": "biases"},
    GATED_BACKWARD: {
        **{"dy": "T", "x": "T", "statistics": "S", "gate": "T"},
        **{"weight": "weights", "bias": "biases"},
    },
    QUANTIZED: {"x": "T", "scale": "S", "weight": "weights", "bias": "biases"},
}
# Those of a backward depend on the call: in front of dweight and dbias.
_OUTPUTS = {LAYER_NORM: 2, OF_SUM: 3, GATED: 2, QUANTIZED: 2}
_IN_FRONT = {BACKWARD: 1, OF_SUM_BACKWARD: 1, GATED_BACKWARD: 2}


def try_forward(
    x: tf.Tensor,
    weight: Any,
    bias: Any,
    residual: tf.Tensor | None,
    gate: tf.Tensor | None,
    definition: Definition,
) -> Any:
    """Take the fast path of an eager call: return y or (y, total); None if it is refused.

    The kernel checks the arguments, but its errors are terse. The caller's own checks raise better
    ones.
    """
    where = context.context()
    name, inputs, attributes = _of_forward(x, weight, bias, residual, gate, definition)
    try:
        y, _, *total = pywrap_tfe.TFE_Py_FastPathExecute(where, name, None, *inputs, *attributes)
    except (core._NotOkStatusException, core._FallbackException, TypeError, ValueError):
        return None
    return (y, *total) if total else y


def forward(
    x: tf.Tensor,
    weight: tf.Tensor | None,
    bias: tf.Tensor | None,
    residual: tf.Tensor | None,
    gate: tf.Tensor | None,
    definition: Definition,
) -> Any:
    """Return y, or (y, total) with a residual. Not both a residual and a gate."""
    y, _, *total = _call(*_of_forward(x, weight, bias, residual, gate, definition))
    return (y, *total) if total else y


def _of_forward(
    x: tf.Tensor,
    weight: Any,
    bias: Any,
    residual: tf.Tensor | None,
    gate: tf.Tensor | None,
    definition: Definition,
) -> tuple[str, Sequence[Any], tuple[Any, ...]]:
    """Return the operation, its inputs and its attributes."""
    statistics_type = tf.float64 if x.dtype == tf.float64 else tf.float32
    attributes = (*definition.attributes, "S", statistics_type)
    if weight is None and bias is None:
        attributes += ("P", x.dtype)
    given = ([] if weight is None else [weight], [] if bias is None else [bias])
    if residual is not None:
        return OF_SUM, (x, residual, *given), attributes
    if gate is not None:
        return GATED, (x, gate, *given), attributes
    return LAYER_NORM, (x, *given), attributes


def backward(
    dy: tf.Tensor,
    x: tf.Tensor,
    statistics: tf.Tensor,
    weight: Tensors,
    bias: Tensors,
    definition: Definition,
    dtotal: tf.Tensor | None = None,
) -> list[tf.Tensor]:
    """Return dx, and dweight and dbias where there is a weight and a bias.

    With `dtotal`, x is total, and dx the sum of both gradients.
    """
    attributes = (*definition.attributes, "biases", len(bias))
    if not weight:
        attributes += ("P", bias[0].dtype if bias else x.dtype)
    if dtotal is None:
        gradients = _call(BACKWARD, (dy, x, statistics, weight), attributes)
    else:
        gradients = _call(OF_SUM_BACKWARD, (dy, x, statistics, dtotal, weight), attributes)
    return _flat(gradients)


def gated_backward(
    dy: tf.Tensor,
    x: tf.Tensor,
    statistics: tf.Tensor,
    gate: tf.Tensor,
    weight: Tensors,
    bias: Tensors,
    definition: Definition,
) -> list[tf.Tensor]:
    """Return dx, dgate, and dweight and dbias where there is a weight and a bias.

    Both vary along the same axes. Only dgate needs the bias's values.
    """
    attributes = definition.attributes
    if not (weight or bias):
        attributes += ("P", x.dtype)
    return _flat(_call(GATED_BACKWARD, (dy, x, statistics, gate, weight, bias), attributes))


def quantized(
    x: tf.Tensor,
    weight: tf.Tensor | None,
    bias: tf.Tensor | None,
    scale: tf.Tensor | None,
    dtype: tf.DType,
    definition: Definition,
) -> Sequence[tf.Tensor]:
    """Return q, and the scales of the rows, which are empty with a given scale."""
    if scale is None:
        scale = tf.constant([], spec.compute_type(x.dtype.name))
    attributes = (*definition.attributes, "Q", dtype)
    if weight is None and bias is None:
        attributes += ("P", x.dtype)
    given = ([] if weight is None else [weight], [] if bias is None else [bias])
    q, scales = _call(QUANTIZED, (x, scale, *given), attributes)
    return q, scales


def _flat(gradients: Sequence[Any]) -> list[tf.Tensor]:
    results: list[tf.Tensor] = []
    for each in gradients:
        results += each if isinstance(each, list) else [each]
    return results


def _call(name: str, inputs: Sequence[Any], attributes: tuple[Any, ...]) -> Sequence[Any]:
    where = context.context()
    if not where.executing_eagerly():
        return _call_in_graph(name, inputs, attributes)
    try:
        return pywrap_tfe.TFE_Py_FastPathExecute(where, name, None, *inputs, *attributes)
    except core._NotOkStatusException as error:
        ops.raise_from_not_ok_status(error, None)
    except core._FallbackException:
        pass
    return _call_in_full(name, inputs, attributes, where)


def _call_in_graph(name: str, inputs: Sequence[Any], attributes: tuple[Any, ...]) -> Tensors:
    options = dict(zip(attributes[::2], attributes[1::2], strict=True))
    options |= dict(zip(_INPUTS[name], inputs, strict=True))
    scope = "layer_norm" if name in _OUTPUTS else "layer_norm_backward"
    _, _, op, outputs = op_def_library._apply_op_helper(name, name=scope, **options)
    if execute.must_record_gradient():
        execute.record_gradient(name, op.inputs, _recorded(op), outputs)
    return outputs[:]


def _recorded(op: tf.Operation) -> tuple[Any, ...]:
    names = (each.name for each in op.op_def.attr if each.type != "type")
    return tuple(part for name in names for part in (name, op.get_attr(name)))


def _call_in_full(
    name: str, inputs: Sequence[Any], attributes: tuple[Any, ...], where: Any
) -> Tensors:
    """Execute an eager call with every attribute, where TensorFlow's fast path refuses it."""
    options = dict(zip(attributes[::2], attributes[1::2], strict=True))
    flat: list[tf.Tensor] = []
    for each, kind in zip(inputs, _INPUTS[name].values(), strict=True):
        given = [tf.convert_to_tensor(one) for one in each] if isinstance(each, list) else [each]
        if isinstance(each, list):
            options |= {kind: len(given)} | ({"P": given[0].dtype} if given else {})
        else:
            options[kind] = each.dtype
        flat += given
    attributes = tuple(
        each.as_datatype_enum if isinstance(each, tf.DType) else each
        for pair in options.items()
        for each in pair
    )
    outputs = _OUTPUTS.get(name) or _IN_FRONT[name] + options["weights"] + options["biases"]
    results: Tensors = execute.execute(
        name.encode(), outputs, inputs=flat, attrs=attributes, ctx=where
    )
    if execute.must_record_gradient():
        execute.record_gradient(name, flat, attributes, results)
    return results
