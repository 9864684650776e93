"""Finds out what the norms of a model do, with the user's data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from layernorm.inspection.report import Report


def inspect(model: nn.Module, *inputs: Any, **keywords: Any) -> Report:
    """Run `model` on the inputs, and report on each norm in it: errors, times, ranges.

    A norm is a module that `layernorm.torch.convert` would take or report as left, one of ours, or
    a call of `torch.nn.functional.layer_norm` or `rms_norm` outside of these. Its first call is
    recorded, with the gradient that reaches its result from random gradients of the model's
    outputs, and judged in float64 by `layernorm.accuracy`; the errors are in ulp. Then the call is
    timed, as it is and with our kernels, and so is the whole model.

    The model runs in the mode that it is in, for about four seconds, and at least some two dozen
    times. It is left as it was: its parameters (unless the forward writes to them), their
    gradients, buffers, attributes, hooks and classes, and the states of PyTorch's random number
    generators. Memory: copies of what each norm was given and returned.

    Args:
        model: a module with at least one norm. Parts that torch.compile compiled run
            eagerly, also when timed.
        inputs, keywords: those of a call of the model, which gets copies.
    Returns: a `layernorm.inspection.report.Report`, to print or to save as a page.
    Raises: TypeError if model is not a module, or returns a sparse tensor; ValueError if it has no
        norm, none was called, or it has no numbers yet; RuntimeError if the model raises, from what
        it raised; ImportError for bfloat16 without ml_dtypes.
    """
    # Not above: most who import the front end need nothing of what measures and draws.
    from layernorm.torch.inspection.reporting import report_on

    return report_on(model, inputs, keywords)
