"""Makes the report on a Flax model."""

from __future__ import annotations

import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax import Array

from layernorm.flax.inspection.norms import Watched, arrays_of, differentiate, judge, record
from layernorm.flax.inspection.runners import runner_of
from layernorm.flax.inspection.timing import time_model, time_norm
from layernorm.inspection.messages import model_raised, not_measured
from layernorm.inspection.report import Report


def report_on(model: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Report:
    """Do what `inspect` says."""
    run = runner_of(model)
    inputs, keywords = jax.tree.map(_to_array, (inputs, keywords))
    watched: dict[str, Watched] = {}
    traced: set[str] = set()
    try:
        with jax.disable_jit():  # numbers, not tracers
            output = run(
                run.variables, inputs, keywords, functools.partial(record, watched, traced)
            )
    except Exception as error:
        entries = [each.entry for each in watched.values()]
        raise RuntimeError(model_raised(model, entries, error)) from error
    unseen = ", ".join(sorted(traced - watched.keys()))
    if not watched and unseen:
        raise ValueError(
            f"{type(model).__name__} called norms only inside of transformations such as remat, "
            f"vmap or nnx.jit, which hide their numbers: {unseen}; pass the model without these"
        )
    if not watched:
        raise ValueError(f"{type(model).__name__} called no norm: no module named after one")
    report = Report(
        model=f"{type(model).__module__}.{type(model).__qualname__}",
        framework=f"Flax {flax.__version__}, JAX {jax.__version__}",
        device=str(next((each.device for each in arrays_of(output)), jax.default_backend())),
        norms=[each.entry for each in watched.values()],
    )
    if unseen:
        report.notes.append(
            "not measured, because they run inside of transformations such as remat, vmap or "
            f"nnx.jit, which hide their numbers: {unseen}"
        )
    differentiate(run, watched, inputs, keywords, output, report.notes)
    for each in watched.values():
        try:
            judge(each)
            time_norm(each)
        except Exception as error:
            report.notes.append(not_measured(each.entry.name, error))
    time_model(run, watched.values(), inputs, keywords, output, report)
    return report


def _to_array(given: Any) -> Any:
    """Return an array of JAX's for one of NumPy's, which would be a constant of the program."""
    kind = getattr(getattr(given, "dtype", None), "kind", "O")
    return given if kind in "OSU" or isinstance(given, Array) else jnp.asarray(given)
