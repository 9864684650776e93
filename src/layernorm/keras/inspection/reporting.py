"""Makes the report on a Keras model."""

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


def report_on(model: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Report:
    """Do what `inspect` says."""
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
