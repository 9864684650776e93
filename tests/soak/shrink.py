"""Finds a simpler case that fails in the same way."""

import time
from collections.abc import Callable, Iterator

from draw import WAYS, is_possible
from judge import check
from soak_case import Case

SECONDS = 30


def failure_of(case: Case) -> Exception | None:
    try:
        check(case)
    except Exception as error:  # whatever it is, it is to be reported
        return error
    return None


def shrink(
    case: Case,
    failure: Exception,
    failure_of: Callable[[Case], Exception | None] = failure_of,
    seconds: float = SECONDS,
) -> tuple[Case, Exception]:
    """Simplify a case for so long, as long as it fails with the same type of exception."""
    end = time.monotonic() + seconds
    tried = {case}
    found = True
    while found:
        found = False
        for simpler in simpler_cases(case):
            if simpler in tried or not is_possible(simpler):
                continue
            if time.monotonic() > end:
                return case, failure
            tried.add(simpler)
            now = failure_of(simpler)
            if type(now) is type(failure):
                case, failure, found = simpler, now, True
                break
    return case, failure


def simpler_cases(case: Case) -> Iterator[Case]:
    """Yield the case with one thing simpler, the largest steps first."""
    yield case.but(framework="numpy", way="functions", passes_eps=True)
    yield case.but(also="", threads=1)
    yield case.but(x_memory=None, dy_memory=None, parameter_memory=None)
    for memory in ("x_memory", "dy_memory", "parameter_memory"):
        yield case.but(**{memory: None})
    for way in list(WAYS[case.framework])[: list(WAYS[case.framework]).index(case.way)]:
        yield case.but(way=way)
    yield case.but(also="")
    yield case.but(threads=1)
    yield from _simpler_options(case)
    for size in _sizes(case):
        yield case.but(shape=size)
    if case.is_contiguous and case.parameter_memory is None:
        yield from _fewer_axes(case)
    for seed in range(3 if case.seed > 2 else 0):
        yield case.but(seed=seed)


def _simpler_options(case: Case) -> Iterator[Case]:
    if case.parameters:
        yield case.but(parameters="", parameter_dtype=None)
        if case.parameters != Case.parameters:
            yield case.but(parameters=Case.parameters)
    yield case.but(parameter_dtype=None)
    yield case.but(parameter_values="ordinary")
    yield case.but(passes_eps=True)
    yield case.but(passes_eps=True, eps=1e-5)
    yield case.but(values="ordinary")
    yield case.but(dy_values=Case.dy_values)
    if case.has_trailing_axes and len(case.axes) == 1:
        yield case.but(axis=Case.axis)
    for need in ("", "dx", "dweight", "dbias"):
        if len(need) < len(case.need):
            yield case.but(need=need)
    yield case.but(dtype="float32", parameter_dtype=None)


def _sizes(case: Case) -> Iterator[tuple[int, ...]]:
    for axis, size in enumerate(case.shape):
        for smaller in dict.fromkeys((1, 2, size // 2, size * 3 // 4, size - 1)):
            if 0 < smaller < size:
                yield (*case.shape[:axis], smaller, *case.shape[axis + 1 :])


def _fewer_axes(case: Case) -> Iterator[Case]:
    axes, ndim = case.axes, len(case.shape)
    for gone in range(ndim):
        kept = [axis for axis in axes if axis != gone]
        if case.shape[gone] == 1 and kept:
            moved = tuple(axis - (axis > gone) - (ndim - 1) for axis in kept)
            shape = (*case.shape[:gone], *case.shape[gone + 1 :])
            yield case.but(shape=shape, axis=moved[0] if len(moved) == 1 else moved)
