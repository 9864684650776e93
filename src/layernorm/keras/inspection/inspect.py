"""Finds out what the norms of a Keras model do, with the user's data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layernorm.inspection.report import Report


def inspect(model: Any, *inputs: Any, **keywords: Any) -> Report:
    """Run `model` on the inputs, and report on each norm in it: errors, times, ranges.

    A norm is a layer that `layernorm.keras.convert` would take or report as left, or one of ours.
    The first call of each is recorded, with the gradient that reaches its result from random
    gradients of the model's outputs, and judged in float64 by `layernorm.accuracy`; the errors are
    in ulp. Then the call is timed, as it is and with our layer, and so is the whole model: compiled
    on TensorFlow and JAX, eagerly on PyTorch and NumPy. A norm's share of the forward is the time
    of its calls by themselves over that of the model. On the NumPy backend there are no gradients.

    The model runs for about four seconds, and at least some two dozen times, with training=False
    unless the keywords say otherwise. It is left as it was: weights, classes, and functions that
    Keras has traced. Do not run the model in another thread meanwhile.

    Args:
        model: a Keras model or layer that is built, with at least one norm.
        inputs, keywords: those of a call of the model: arrays, or tensors of the backend.
    Returns: a `layernorm.inspection.report.Report`, to print or to save as a page.
    Raises: TypeError if model is not a layer; ValueError if it is not built, has no norm, or called
        none; RuntimeError if the model raises, from what it raised.
    """
    # Not above: most who import the front end need nothing of what measures and draws.
    from layernorm.keras.inspection.reporting import report_on

    return report_on(model, inputs, keywords)
