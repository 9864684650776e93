"""The gradients of our operations.

The first is an operation too. Those of the backward differentiate the formula, so that derivatives
of any order follow.
"""

import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from layernorm.tensorflow import formula, operators, parameters
from layernorm.tensorflow.arguments import Definition

Tensors = Sequence[tf.Tensor]


def register() -> None:
    """Register the gradients with TensorFlow, once a process."""
    gradients = {
        operators.LAYER_NORM: _gradients,
        operators.OF_SUM: _gradients_of_sum,
        operators.GATED: _gradients_of_gated,
        operators.BACKWARD: _gradients_of_gradients,
        operators.OF_SUM_BACKWARD: _gradients_of_sums_gradients,
        operators.GATED_BACKWARD: _gradients_of_gated_gradients,
    }
    for name, gradient in gradients.items():
        tf.RegisterGradient(name)(gradient)


def _definition(op: Any) -> Definition:
    """Read the definition from an operation, or from its record on an eager tape."""
    (eps,) = struct.unpack("d", struct.pack("q", op.get_attr("eps_bits")))
    axes = tuple(op.get_attr("axis"))
    gating = None
    if op.type in (operators.GATED, operators.GATED_BACKWARD):
        gating = ("silu" if op.get_attr("silu") else "sigmoid", op.get_attr("norm_before_gate"))
    flags = (op.get_attr("centered"), op.get_attr("zero_centered_weight"))
    return Definition(axes, eps, *flags, gating)


def _gradients(op: Any, dy: Any, _: Any) -> Tensors:
    x, *given = op.inputs
    return _of_inputs(op, dy, x, given, None)


def _gradients_of_sum(op: Any, dy: Any, _: Any, dtotal: Any) -> Tensors:
    dtotal = _dense(dtotal)
    of_total = None if _is_zero(dtotal) else dtotal
    dx, *others = _of_inputs(op, dy, op.outputs[2], op.inputs[2:], of_total)
    return [dx, dx, *others]


def _gradients_of_gated(op: Any, dy: Any, _: Any) -> Tensors:
    x, gate, *given = op.inputs
    weights = op.get_attr("weights")
    weight, bias = given[:weights], given[weights:]
    definition = _definition(op)
    pull_back = functools.partial(
        operators.gated_backward, _dense(dy), x, op.outputs[1], gate, definition=definition
    )

    def together() -> Tensors:
        return pull_back(weight, bias)

    def apart() -> Tensors:
        # dgate needs both, and each sum is over the rows that share its parameter.
        sizes = [parameters.sizes_beside(each, x, definition.axes) for each in given]
        joint = tf.broadcast_dynamic_shape(*sizes)
        both = [
            [tf.broadcast_to(tf.reshape(each, size), joint)]
            for each, size in zip(given, sizes, strict=True)
        ]
        dx, dgate, _, _ = pull_back(*both)
        return [dx, dgate, pull_back(weight, [])[2], pull_back([], bias)[2]]

    if len(given) < 2 or _has_shape_of_gradients(weight, bias[0], definition):
        return together()
    return _where_both_vary_alike(given, x, definition, together, apart)


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
        operators.backward, _dense(dy), x, op.outputs[1], definition=definition, dtotal=dtotal
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
    return _where_both_vary_alike(given, x, definition, together, apart)


def _where_both_vary_alike(
    given: Tensors,
    x: tf.Tensor,
    definition: Definition,
    together: Callable[[], Tensors],
    apart: Callable[[], Tensors],
) -> Tensors:
    """Call `together` where weight and bias vary along the same axes, else `apart`."""
    sizes = [parameters.sizes_beside(each, x, definition.axes) for each in given]
    known = [tf.get_static_value(each) for each in sizes]
    if any(each is None for each in known):
        results: Tensors = tf.cond(tf.reduce_all(tf.equal(*sizes)), together, apart)
        return results
    return together() if (known[0] == known[1]).all() else apart()


def _has_shape_of_gradients(weight: Tensors, bias: tf.Tensor, definition: Definition) -> bool:
    """Tell whether the bias is known to have the shape that the backward gives to dbias."""
    shapes = [each.shape for each in (*weight, bias)]
    if all(each.rank == len(definition.axes) for each in shapes):
        return True  # the normalized one
    return len(shapes) == 2 and bias.shape.is_fully_defined() and shapes[0] == shapes[1]


def _gradients_of_gradients(op: Any, *gradients: tf.Tensor) -> Sequence[tf.Tensor | None]:
    dy, x, _, *weight = op.inputs
    bias = _any_biases(op, gradients)
    of_dy, of_x, *of_weight = _second_derivatives(op, [dy, x], weight, bias, gradients)
    return of_dy, of_x, None, *of_weight[: len(weight)]


def _gradients_of_sums_gradients(op: Any, *gradients: tf.Tensor) -> Sequence[tf.Tensor | None]:
    dy, total, _, _, *weight = op.inputs
    bias = _any_biases(op, gradients)
    of_dy, of_total, *of_weight = _second_derivatives(op, [dy, total], weight, bias, gradients)
    # dtotal was added to dx
    return of_dy, of_total, None, gradients[0], *of_weight[: len(weight)]


def _gradients_of_gated_gradients(op: Any, *gradients: tf.Tensor) -> Sequence[tf.Tensor | None]:
    dy, x, _, gate, *given = op.inputs
    weights = op.get_attr("weights")
    parameters = given[:weights], given[weights:]
    of_dy, of_x, of_gate, *of_given = _second_derivatives(op, [dy, x, gate], *parameters, gradients)
    return of_dy, of_x, None, of_gate, *of_given


def _any_biases(op: Any, gradients: Tensors) -> Tensors:
    """Return zeros in the place of the bias: without a gate only its shape matters."""
    return [tf.zeros_like(each) for each in gradients[1 + op.get_attr("weights") :]]


def _second_derivatives(
    op: Any, tensors: Tensors, weight: Tensors, bias: Tensors, gradients: Tensors
) -> Sequence[tf.Tensor | None]:
    """Differentiate the formula twice.

    Returns: the gradients of `tensors` (dy, x, and the gate if there is one), weight and bias.
    """
    definition = _definition(op)

    def y_of(x: tf.Tensor, *given: tf.Tensor) -> tf.Tensor:
        each = iter(given)
        gate, of_weight, of_bias = (
            next(each) if is_given else None for is_given in (len(tensors) > 2, weight, bias)
        )
        return formula.y_of(x, of_weight, of_bias, definition, gate)

    def backward_of(dy: tf.Tensor, *given: tf.Tensor) -> Sequence[tf.Tensor]:
        return _pull_back(y_of, given, [dy])

    return _pull_back(backward_of, (*tensors, *weight, *bias), gradients)


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
