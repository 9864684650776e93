"""Run by test_tensorflow.py: the formula that XLA compiles is within the bounds."""

import pytest
import tensorflow as tf
from as_numpy_tensorflow import AsNumpy
from cases import Case
from checkers import check_backward, check_forward
from values import TYPES

import layernorm.tensorflow as ours

VALUES = ("ordinary", "mean_2_to_20", "mean_1e4", "near_largest", "scale_1e30", "outlier")


# RMS norm in one type of each of the formula's paths: for 16 and 32 bits, and for 64.
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*(("layer_norm", each) for each in TYPES), ("rms_norm", "bfloat16"), ("rms_norm", "float64")],
)
def test_results_are_within_their_bounds(kind, dtype, values) -> None:
    case = Case(kind, dtype, 65, values=values, rows=5)
    check_forward(AsNumpy("xla"), case)
    if values != "near_largest":  # dx is subnormal there, and XLA flushes it to zero
        check_backward(AsNumpy("xla"), case)


@pytest.mark.parametrize(
    ("layout", "parameters"),
    [
        *(("channels_first", ""), ("axes_apart", "bias"), ("last_two_axes", "weight")),
        ("axes_apart", "weight bias zero_centered"),
    ],
)
def test_any_axis_and_parameters(layout, parameters) -> None:
    options = {"parameters": parameters, "parameter_dtype": "float32" if parameters else None}
    case = Case("layer_norm", "bfloat16", 24, layout=layout, **options)
    check_forward(AsNumpy("xla"), case)
    check_backward(AsNumpy("xla"), case)


def test_a_function_inside_of_a_compiled_one_is_compiled_too() -> None:
    inner = tf.function(lambda x: ours.layer_norm(x))
    x = tf.random.normal((5, 7), seed=0)
    y = tf.function(lambda x: inner(x) + tf.cond(x[0, 0] > 9, lambda: x, lambda: inner(x)),
                    jit_compile=True)(x)  # fmt: skip
    tf.debugging.assert_near(y, 2 * ours.layer_norm(x), rtol=1e-6)
