"""Finds out what the norms of a Flax model do, with the user's data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layernorm.inspection.report import Report


def inspect(model: Any, *inputs: Any, **keywords: Any) -> Report:
    """Run `model` on the inputs, and report on each norm in it: errors, times, ranges.

    A norm is a module whose class is named after one. The first call of each is recorded, with the
    gradient that reaches its result from random gradients of the model's outputs, and judged in
    float64 by `layernorm.accuracy`; the errors are in ulp. Then the call is timed, compiled, as it
    is and with our class, and so is the whole model. A norm's share of the forward is the time of
    its calls by themselves over that of the model.

    Flax has no `convert`; in the report, "yes" means that `layernorm.flax` has a class of the same
    name with the same arguments.

    The model stays as it is: what runs are copies, for about four seconds, and at least some two
    dozen times. Do not run a model of `flax.nnx` in another thread meanwhile.

    Args:
        model: a `flax.nnx.Module`, or a `flax.linen.Module` that is bound to its variables:
            `model.bind(variables)`.
        inputs, keywords: those of a call of the model.
    Returns: a `layernorm.inspection.report.Report`, to print or to save as a page.
    Raises: TypeError if model is not such a module; ValueError if it has no norm; RuntimeError if
        the model raises, from what it raised.
    """
    # Not above: most who import the front end need nothing of what measures and draws.
    from layernorm.flax.inspection.reporting import report_on

    return report_on(model, inputs, keywords)
