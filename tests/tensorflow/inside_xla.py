"""Run by test_tensorflow.py: the formula that XLA compiles is within the bounds."""

import pytest
import tensorflow as tf
from as_numpy_tensorflow import AsNumpy
from cases import Case
from checkers import check_backward, check_forward
from values import TYPES

import layernorm.tensorflow as ours

VALUES = ("ordinary", "mean_2_to_20", "mean_1e4", "near_largest", "scale_1e30", "outlier")


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_results_are_within_their_bounds(kind, dtype, values) -> None:
    case = Case(kind, dtype, 65, values=values, rows=5)
    check_forward(AsNumpy("xla"), case)
    if values != "near_largest":  # dx is subnormal there, and XLA flushes it to zero
        check_backward(AsNumpy("xla"), case)


@pytest.mark.parametrize("layout", ["channels_first", "axes_apart", "last_two_axes"])
def test_any_axis(layout) -> None:
    case = Case("layer_norm", "float32", 24, layout=layout)
    check_forward(AsNumpy("xla"), case)
    check_backward(AsNumpy("xla"), case)


@pytest.mark.parametrize("parameters", ["", "bias", "weight", "weight bias zero_centered"])
def test_any_parameters(parameters) -> None:
    given = "float32" if parameters else None
    case = Case("layer_norm", "bfloat16", 24, parameters=parameters, parameter_dtype=given)
    check_forward(AsNumpy("xla"), case)
    check_backward(AsNumpy("xla"), case)


def test_a_function_inside_of_a_compiled_one_is_compiled_too() -> None:
    inner = tf.function(lambda x: ours.layer_norm(x))
    x = tf.random.normal((5, 7), seed=0)
    y = tf.function(lambda x: inner(x) + tf.cond(x[0, 0] > 9, lambda: x, lambda: inner(x)),
                    jit_compile=True)(x)  # fmt: skip
    tf.debugging.assert_near(y, 2 * ours.layer_norm(x), rtol=1e-6)
