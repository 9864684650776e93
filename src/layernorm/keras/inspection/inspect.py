"""Finds out what the norms of a Keras model do, with the user's data."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras

from layernorm.inspection.messages import model_raised, not_measured
from layernorm.inspection.report import Report
from layernorm.keras.conversion import kind_of
from layernorm.keras.inspection.backend import BACKEND, eager, random_like
from layernorm.keras.inspection.norms import (
    Runner,
    Watched,
    calls_replaced,
    differentiate,
    judge,
    norms_in,
    record,
)
from layernorm.keras.inspection.timing import time_model, time_norm


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
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(
            f"model is of type {type(model).__name__}, expected a Keras model or layer: "
            "pass the model"
        )
    if not model.built:
        raise ValueError(f"{type(model).__name__} is not built: call it once before")
    watched = norms_in(model)
    if not watched:
        raise ValueError(
            f"{type(model).__name__} has no norm: no LayerNormalization, RMSNormalization or layer "
            "whose class is named after a norm"
        )
    run = Runner(model, inputs, keywords)
    called: list[Watched] = []
    try:
        with eager(), calls_replaced(watched, functools.partial(record, called)):
            outputs = run(run.weights, run.arrays)
    except Exception as error:
        entries = [each.entry for each in called]
        raise RuntimeError(model_raised(model, entries, error)) from error
    if not called:
        names = ", ".join(each.entry.name for each in watched)
        raise ValueError(f"{type(model).__name__} called none of its norms, {names}")
    return _report(run, watched, called, outputs)


def _report(
    run: Runner, watched: Sequence[Watched], called: Sequence[Watched], outputs: Any
) -> Report:
    report = Report(
        model=kind_of(type(run.model)),
        framework=f"Keras {keras.__version__} on {BACKEND}",
        device=str(getattr(outputs[0], "device", "cpu")) if outputs else "cpu",
        mode="training" if run.is_training else "inference",
        norms=[each.entry for each in called] + [e.entry for e in watched if not e.entry.calls],
    )
    dys = [random_like(each) for each in outputs]
    differentiate(run, called, dys, report.notes)
    for each in called:
        try:
            judge(each)
            time_norm(each)
        except Exception as error:
            report.notes.append(not_measured(each.entry.name, error))
    time_model(run, called, dys, report)
    return report
