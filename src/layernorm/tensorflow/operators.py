"""Our operations, called eagerly and in graphs, and their gradients.

    LayerNorm               x, weight, bias                     -> y, statistics
    LayerNormBackward       dy, x, statistics, weight           -> dx, dweight, dbias
    LayerNormOfSum          x, residual, weight, bias           -> y, statistics, total
    LayerNormOfSumBackward  dy, total, statistics, dtotal, weight -> dx, dweight, dbias

The compiled module defines them (native/bindings/tensorflow/operators.cc). There weight and bias
are lists of one tensor or none, and so are their gradients. In the backward, dweight and dbias have
the weight's sizes, or the normalized ones if there is no weight. dx is the gradient of the residual
too.
"""

import functools
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
OF_SUM = "LayerNormOfSum__import_layernorm_tensorflow"
OF_SUM_BACKWARD = "LayerNormOfSumBackward__import_layernorm_tensorflow"

# The inputs of each, with the attribute for their type, or for the length of a list (of type P).
_INPUTS = {
    LAYER_NORM: {"x": "T", "weight": "weights", "bias": "biases"},
    BACKWARD: {"dy": "T", "x": "T", "statistics": "S", "weight": "weights"},
    OF_SUM: {"x": "T", "residual": "T", "weight": "weights", "bias": "biases"},
    OF_SUM_BACKWARD: {
        **{"dy": "T", "total": "T", "statistics": "S", "dtotal": "T"},
        "weight": "weights",
    },
}
_OUTPUTS = {LAYER_NORM: 2, OF_SUM: 3}  # those of a backward depend on the call


def try_forward(
    x: tf.Tensor, weight: Any, bias: Any, residual: tf.Tensor | None, definition: Definition
) -> Any:
    """Take the fast path of an eager call: return y or (y, total); None if it is refused.

    The kernel checks the arguments, but its errors are terse. The caller's own checks raise better
    ones.
    """
    where = context.context()
    name, inputs, attributes = _of_forward(x, weight, bias, residual, definition)
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
    definition: Definition,
) -> Any:
    """Return y, or (y, total) with a residual."""
    y, _, *total = _call(*_of_forward(x, weight, bias, residual, definition))
    return (y, *total) if total else y


def _of_forward(
    x: tf.Tensor, weight: Any, bias: Any, residual: tf.Tensor | None, definition: Definition
) -> tuple[str, Sequence[Any], tuple[Any, ...]]:
    """Return the operation, its inputs and its attributes."""
    statistics_type = tf.float64 if x.dtype == tf.float64 else tf.float32
    attributes = (*definition.attributes, "S", statistics_type)
    if weight is None and bias is None:
        attributes += ("P", x.dtype)
    given = ([] if weight is None else [weight], [] if bias is None else [bias])
    if residual is None:
        return LAYER_NORM, (x, *given), attributes
    return OF_SUM, (x, residual, *given), attributes


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
    outputs = _OUTPUTS.get(name) or 1 + options["weights"] + options["biases"]
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
def _gradients(op: Any, dy: Any, _: Any) -> Tensors:
    x, *given = op.inputs
    return _of_inputs(op, dy, x, given, None)


@tf.RegisterGradient(OF_SUM)
def _gradients_of_sum(op: Any, dy: Any, _: Any, dtotal: Any) -> Tensors:
    dtotal = _dense(dtotal)
    of_total = None if _is_zero(dtotal) else dtotal
    dx, *others = _of_inputs(op, dy, op.outputs[2], op.inputs[2:], of_total)
    return [dx, dx, *others]


def _dense(gradient: Any) -> tf.Tensor:
    """Return a tensor: the gradient of tf.gather is IndexedSlices."""
    return gradient if isinstance(gradient, tf.Tensor) else tf.convert_to_tensor(gradient)


def _is_zero(gradient: tf.Tensor) -> bool:
    """Tell whether a graph has zeros here, as TensorFlow makes them for a result without a use."""
    if tf.executing_eagerly():
        return False
    if gradient.op.type in ("Const", "Fill"):
        value = tf.get_static_value(gradient.op.inputs[-1] if gradient.op.inputs else gradient)
        return value is not None and not value.any()
    return bool(gradient.op.type == "ZerosLike")


def _of_inputs(op: Any, dy: Any, x: tf.Tensor, given: Tensors, dtotal: tf.Tensor | None) -> Tensors:
    """Return the gradients of x, weight and bias, the parameters that are given."""
    weights = op.get_attr("weights")
    weight, bias = given[:weights], given[weights:]
    definition = _definition(op)
    pull_back = functools.partial(
        backward, _dense(dy), x, op.outputs[1], definition=definition, dtotal=dtotal
    )
    if not bias or _has_shape_of_gradients(weight, bias[0], definition):
        return pull_back(weight, bias)

    def together() -> Tensors:
        dx, dweight, dbias = pull_back(weight, bias)
        return [dx, dweight, tf.reshape(dbias, tf.shape(bias[0]))]

    def apart() -> Tensors:
        # A weight that changes nothing tells the backward the shape of dbias.
        one = tf.zeros_like if definition.zero_centered_weight else tf.ones_like
        *others, _, dbias = pull_back([one(bias[0])], bias)
        if weight:
            others = pull_back(weight, [])
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
    dy, x, _, *weights = op.inputs
    of_dy, of_x, *of_weight = _second_derivatives(op, dy, x, weights, gradients)
    return of_dy, of_x, None, *of_weight


@tf.RegisterGradient(OF_SUM_BACKWARD)
def _gradients_of_sums_gradients(op: Any, *gradients: tf.Tensor) -> Sequence[tf.Tensor | None]:
    dy, total, _, _, *weights = op.inputs
    of_dy, of_total, *of_weight = _second_derivatives(op, dy, total, weights, gradients)
    return of_dy, of_total, None, gradients[0], *of_weight  # dtotal was added to dx


def _second_derivatives(
    op: Any, dy: tf.Tensor, x: tf.Tensor, weights: Tensors, gradients: Tensors
) -> Sequence[tf.Tensor | None]:
    """Differentiate the formula twice: derivatives of any order follow."""
    # Only the shape of a bias matters here, not its values.
    biases = [tf.zeros_like(each) for each in gradients[1 + len(weights) :]]
    definition = _definition(op)

    def y_of(x: tf.Tensor, *parameters: tf.Tensor) -> tf.Tensor:
        given = (parameters[: len(weights)], parameters[len(weights) :])
        weight, bias = (each[0] if each else None for each in given)
        return formula.y_of(x, weight, bias, definition)

    def backward_of(dy: tf.Tensor, *given: tf.Tensor) -> Sequence[tf.Tensor]:
        return _pull_back(y_of, (*given, *biases), [dy])

    return _pull_back(backward_of, (dy, x, *weights), gradients)


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
