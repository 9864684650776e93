"""Measures one call of a norm, given as NumPy arrays, and the time of calls."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from layernorm import accuracy, reference
from layernorm.inspection.findings import Norm, Parameter, Rows
from layernorm.spec import normalize_axes, normalized_shape

Array = npt.NDArray[Any]

MOST_ELEMENTS = 2**18
"""Of a larger call, the first samples that fit are judged: float64 takes its time."""

OF_A_NORM = 0.05
OF_THE_MODEL = 2.0
"""Seconds to time each of them for."""

DEAD = 1e-3
"""A unit is dead if its weight is at most this times the median of the weights."""


@dataclass
class NumpyCall:
    """One call of a norm and its backward; what is None was not there.

    Attributes:
        computes: "layer_norm" or "rms_norm".
        x, y, weight, bias, axis, eps, zero_centered_weight: as in `layernorm.reference`.
        dy, dx, dweight, dbias: the gradients.
        gate, activation, norm_before_gate: of a gated norm.
    """

    computes: Any
    x: Array
    y: Array
    axis: int | Sequence[int]
    eps: float
    weight: Array | None = None
    bias: Array | None = None
    zero_centered_weight: bool = False
    dy: Array | None = None
    dx: Array | None = None
    dweight: Array | None = None
    dbias: Array | None = None
    gate: Array | None = None
    activation: str = "silu"
    norm_before_gate: bool = True


def part_that_fits(shape: tuple[int, ...], axis: int | Sequence[int]) -> tuple[slice, ...]:
    """Return the part of a call to judge: whole rows, and at least one."""
    normalized = normalize_axes(axis, len(shape))
    part = [slice(None)] * len(shape)
    size = math.prod(shape)
    for place, length in enumerate(shape):
        if place not in normalized and size > MOST_ELEMENTS:
            kept = max(1, MOST_ELEMENTS * length // size)
            part[place] = slice(kept)
            size = size // length * kept
    return tuple(part)


def fill(norm: Norm, call: NumpyCall) -> None:
    """Enter into `norm` what the call shows."""
    axes = normalize_axes(call.axis, call.x.ndim)
    norm.computes = call.computes
    norm.normalized_shape = normalized_shape(call.x.shape, axes)
    norm.eps = call.eps
    fill_parameters(norm, call.weight, call.bias, zero_centered=call.zero_centered_weight)
    if call.x.dtype.name not in accuracy.BOUNDS or call.y.dtype.name not in accuracy.BOUNDS:
        return
    norm.rows = _rows(call, axes)
    norm.errors = _errors(call)
    norm.bounds = {name: _bound(name, call) for name in norm.errors}


def fill_parameters(
    norm: Norm, weight: Array | None, bias: Array | None, *, zero_centered: bool = False
) -> None:
    """Enter the ranges of the parameters."""
    if weight is not None and weight.size:
        used = weight.astype(np.float64) + zero_centered
        norm.weight = _parameter(used, weight.dtype.name)
        norm.dead = int((np.abs(used) <= DEAD * np.median(np.abs(used))).sum())
    if bias is not None and bias.size:
        norm.bias = _parameter(bias.astype(np.float64), bias.dtype.name)


def _parameter(values: Array, type_name: str) -> Parameter:
    found = (float(each) for each in (values.min(), values.mean(), values.max()))
    return Parameter(type_name, *found)


def _rows(call: NumpyCall, axes: tuple[int, ...]) -> Rows:
    x = call.x
    if call.gate is not None and not call.norm_before_gate:
        x = x.astype(np.float64) * reference.activate(call.gate, call.activation)[0]
    centered = call.computes == "layer_norm"
    mean, var, _ = reference.statistics(x, axes, call.eps, centered=centered)
    if mean.size == 0:
        return Rows(0, None, None, 0.0)
    below = float((var <= call.eps).mean())
    if not centered:
        return Rows(mean.size, None, None, below)
    with np.errstate(all="ignore"):
        ratio = np.where(mean == 0, 0, np.abs(mean) / np.sqrt(var))
    return Rows(mean.size, float(ratio.max()), float(np.median(ratio)), below)


def _errors(call: NumpyCall) -> dict[str, float]:
    function: dict[str, Any] = {"axis": call.axis, "eps": call.eps, "kind": call.computes}
    form: dict[str, Any] = {**function, "zero_centered_weight": call.zero_centered_weight}
    results = {"y": call.y, "dx": call.dx, "dweight": call.dweight, "dbias": call.dbias}
    if call.gate is not None:
        return accuracy.gated_errors(
            results, call.x, call.gate, call.weight, call.bias, call.dy,
            activation=call.activation, norm_before_gate=call.norm_before_gate, **form,
        )  # fmt: skip
    errors = {"y": accuracy.y_error(call.y, call.x, call.weight, call.bias, **form)}
    if call.dy is None:
        return errors
    if call.dx is not None:
        errors["dx"] = accuracy.dx_error(call.dx, call.dy, call.x, call.weight, **form)
    if call.dweight is not None:
        errors["dweight"] = accuracy.dweight_error(call.dweight, call.dy, call.x, **function)
    if call.dbias is not None:
        errors["dbias"] = accuracy.dbias_error(call.dbias, call.dy, axis=call.axis)
    return errors


def _bound(name: str, call: NumpyCall) -> float:
    bounds = accuracy.BOUNDS[(call.y if name == "y" else call.x).dtype.name]
    if call.gate is not None and bounds.y >= 1:
        return accuracy.GATED_BOUND
    return {"y": bounds.y, "dx": bounds.dx}.get(name, bounds.parameter)


def medians(
    calls: Mapping[str, Callable[[], object]],
    *,
    around: Callable[[str], AbstractContextManager[object]],
    seconds: float,
    fewest: int = 3,
) -> dict[str, float]:
    """Time the calls in turns, for about so many seconds in all; return their medians.

    A sample is one call, or of shorter ones a loop of about a millisecond, after an untimed call.

    Args:
        calls: by name.
        around: the context of a sample of the call with that name; entering it is not timed.
        seconds, fewest: turns are made for so long, and at least so many.
    """
    loops = dict.fromkeys(calls, 1)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for turn in count(-1):  # the first turn finds the lengths of the loops
        if turn >= fewest and time.perf_counter() > end:
            break
        for name, call in calls.items():
            with around(name):
                if turn < 0 or loops[name] > 1:
                    call()
                start = time.perf_counter()
                for _ in range(loops[name]):
                    call()
                taken = (time.perf_counter() - start) / loops[name]
            if turn >= 0:
                samples[name].append(taken)
            else:
                loops[name] = max(1, int(1e-3 / max(taken, 1e-6)))
    return {name: statistics.median(each) for name, each in samples.items()}


def share_of_all(norms: Iterable[Norm]) -> float | None:
    """Return the sum of the shares; None if there are none."""
    shares = [each.share for each in norms if each.share is not None]
    return sum(shares) if shares else None
