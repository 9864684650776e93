"""Our two operations, called eagerly and in graphs, and their gradients.

    LayerNorm          x, weight, bias            -> y, statistics
    LayerNormBackward  dy, x, statistics, weight  -> dx, dweight, dbias

The compiled module defines both (native/bindings/tensorflow/operators.cc). There weight and bias
are lists of one tensor or none, and so are their gradients. In the backward, dweight and dbias have
the weight's sizes, or the normalized ones if there is no weight.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import context, core, execute
from tensorflow.python.framework import op_def_library, ops

from layernorm.tensorflow import formula, parameters
from layernorm.tensorflow.arguments import Definition

Tensors = Sequence[tf.Tensor]

LAYER_NORM = "LayerNorm__import_layernorm_tensorflow"
BACKWARD = "LayerNormBackward__import_layernorm_tensorflow"

# The inputs of each, with the attribute for their type, or for the length of a list (of type P).
_INPUTS = {
    LAYER_NORM: {"x": "T", "weight": "weights", "bias": "biases"},
    BACKWARD: {"dy": "T", "x": "T", "statistics": "S", "weight": "weights"},
}


def try_forward(x: tf.Tensor, weight: Any, bias: Any, definition: Definition) -> tf.Tensor | None:
    """Take the fast path of an eager call: return y, or None where it refuses the arguments.

    The kernel checks them all, but its errors are terse. The caller's own checks raise better ones.
    """
    where = context.context()
    inputs, attributes = _of_forward(x, weight, bias, definition)
    try:
        y, _ = pywrap_tfe.TFE_Py_FastPathExecute(where, LAYER_NORM, None, *inputs, *attributes)
    except (core._NotOkStatusException, core._FallbackException, TypeError, ValueError):
        return None
    return y


def forward(
    x: tf.Tensor, weight: tf.Tensor | None, bias: tf.Tensor | None, definition: Definition
) -> tf.Tensor:
    """Return y."""
    y, _ = _call(LAYER_NORM, *_of_forward(x, weight, bias, definition))
    return y


def _of_forward(
    x: tf.Tensor, weight: Any, bias: Any, definition: Definition
) -> tuple[Sequence[Any], tuple[Any, ...]]:
    """Return the inputs and the attributes of the forward."""
    statistics_type = tf.float64 if x.dtype == tf.float64 else tf.float32
    attributes = (*definition.attributes, "S", statistics_type)
    if weight is None and bias is None:
        attributes += ("P", x.dtype)
    inputs = (x, [] if weight is None else [weight], [] if bias is None else [bias])
    return inputs, attributes


def backward(
    dy: tf.Tensor,
    x: tf.Tensor,
    statistics: tf.Tensor,
    weight: Tensors,
    bias: Tensors,
    definition: Definition,
) -> list[tf.Tensor]:
    """Return dx, and dweight and dbias where there is a weight and a bias."""
    attributes = (*definition.attributes, "biases", len(bias))
    if not weight:
        attributes += ("P", bias[0].dtype if bias else x.dtype)
    results: list[tf.Tensor] = []
    for each in _call(BACKWARD, (dy, x, statistics, weight), attributes):
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
    scope = "layer_norm" if name == LAYER_NORM else "layer_norm_backward"
    _, _, op, outputs = op_def_library._apply_op_helper(name, name=scope, **options)
    if execute.must_record_gradient():
        execute.record_gradient(name, op.inputs, _recorded(op), outputs)
    return outputs[:]


def _recorded(op: tf.Operation) -> tuple[Any, ...]:
    names = (*("axis", "eps_bits", "centered", "zero_centered_weight"), "weights", "biases")
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
    outputs = 2 if name == LAYER_NORM else 1 + options["weights"] + options["biases"]
    results: Tensors = execute.execute(
        name.encode(), outputs, inputs=flat, attrs=attributes, ctx=where
    )
    if execute.must_record_gradient():
        execute.record_gradient(name, flat, attributes, results)
    return results


def _definition(op: Any) -> Definition:
    """Read the definition from an operation, or from its record on an eager tape."""
    (eps,) = struct.unpack("d", struct.pack("q", op.get_attr("eps_bits")))
    axes = tuple(op.get_attr("axis"))
    return Definition(axes, eps, op.get_attr("centered"), op.get_attr("zero_centered_weight"))


@tf.RegisterGradient(LAYER_NORM)
def _gradients(op: Any, dy: tf.Tensor, _: Any) -> Tensors:
    x, *given = op.inputs
    if not isinstance(dy, tf.Tensor):
        dy = tf.convert_to_tensor(dy)  # the gradient of tf.gather is IndexedSlices
    weights = op.get_attr("weights")
    weight, bias = given[:weights], given[weights:]
    definition = _definition(op)
    if not bias or _has_shape_of_gradients(weight, bias[0], definition):
        return backward(dy, x, op.outputs[1], weight, bias, definition)

    def together() -> Tensors:
        dx, dweight, dbias = backward(dy, x, op.outputs[1], weight, bias, definition)
        return [dx, dweight, tf.reshape(dbias, tf.shape(bias[0]))]

    def apart() -> Tensors:
        # A weight that changes nothing tells the backward the shape of dbias.
        one = tf.zeros_like if definition.zero_centered_weight else tf.ones_like
        *others, _, dbias = backward(dy, x, op.outputs[1], [one(bias[0])], bias, definition)
        if weight:
            others = backward(dy, x, op.outputs[1], weight, [], definition)
        return [*others, dbias]

    if not weight:
        return apart()
    sizes = [parameters.sizes_beside(each, x, definition.axes) for each in given]
    known = [tf.get_static_value(each) for each in sizes]
    if any(each is None for each in known):
        return tf.cond(tf.reduce_all(tf.equal(*sizes)), together, apart)
    return together() if (known[0] == known[1]).all() else apart()


def _has_shape_of_gradients(weight: Tensors, bias: tf.Tensor, definition: Definition) -> bool:
    """Tell whether the bias is known to have the shape that the backward gives to dbias."""
    shapes = [each.shape for each in (*weight, bias)]
    if all(each.rank == len(definition.axes) for each in shapes):
        return True  # the normalized one
    return len(shapes) == 2 and bias.shape.is_fully_defined() and shapes[0] == shapes[1]


@tf.RegisterGradient(BACKWARD)
def _gradients_of_gradients(op: Any, *gradients: tf.Tensor) -> Sequence[tf.Tensor | None]:
    """Differentiate the formula twice: derivatives of any order follow."""
    dy, x, _, *weights = op.inputs
    # Only the shape of a bias matters here, not its values.
    biases = [tf.zeros_like(each) for each in gradients[1 + len(weights) :]]
    definition = _definition(op)

    def y_of(x: tf.Tensor, *parameters: tf.Tensor) -> tf.Tensor:
        given = (parameters[: len(weights)], parameters[len(weights) :])
        weight, bias = (each[0] if each else None for each in given)
        return formula.y_of(x, weight, bias, definition)

    def backward_of(dy: tf.Tensor, *given: tf.Tensor) -> Sequence[tf.Tensor]:
        return _pull_back(y_of, (*given, *biases), [dy])

    of_dy, of_x, *of_weight = _pull_back(backward_of, (dy, x, *weights), gradients)
    return of_dy, of_x, None, *of_weight


def _pull_back(
    function: Callable[..., Any], at: Tensors, gradients: Tensors
) -> Sequence[tf.Tensor | None]:
    """Carry the gradients of function(*at) back to `at`."""
    # The gradients may belong to a function, and `at` to the graph around it.
    at = [tf.identity(each) for each in at]
    if not tf.executing_eagerly():
        # While TensorFlow builds the backward of a function, tapes do not record.
        return tf.gradients(function(*at), at, list(gradients))
    with tf.GradientTape() as tape:
        tape.watch(at)
        results = function(*at)
    if isinstance(results, tf.Tensor):
        results = [results]
    return tape.gradient(results, at, list(gradients))
