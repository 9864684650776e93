"""The promises that hold or not: the same bits, exact edges, NaN kept to its row."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

import layernorm
from layernorm.cli.check.inputs import inputs
from layernorm.cli.check.results import Promise
from layernorm.cli.problem import Array, Problem, available_types, make_problem
from layernorm.cli.providers import Provider, Unsupported

ROWS, COLS = 2048, 769  # enough work for several threads; an odd width

THREAD_COUNTS = (1, 2, 3, 8)


def check_promises(provider: Provider) -> list[Promise]:
    """Check each promise in each type that the provider takes."""
    checks: list[tuple[str, Callable[[Provider, str], bool]]] = [
        ("a batch of one gives the bits of that row in a batch: y, dx", _batch_of_one),
        ("1, 2, 3 and 8 threads give the same bits: y, dx, dweight, dbias", _thread_count),
        ("constant rows and single columns give exactly bias", _constant),
        ("NaN and infinity make their own row NaN and no other", _not_finite),
    ]
    types = [each for each in available_types() if each in provider.types]
    return [
        Promise(text, [name for name in types if not check(provider, name)])
        for text, check in checks
    ]


def _batch_of_one(provider: Provider, type_name: str) -> bool:
    problem = _problem(type_name)
    batch = _rowwise(provider, problem)
    for row in (0, 1, ROWS // 2 + 1, ROWS - 1):
        only = slice(row, row + 1)
        # A copy: neither the row's neighbors nor its alignment may matter.
        alone = replace(problem, x=problem.x[only].copy(), dy=problem.dy[only].copy())
        for one, of_batch in zip(_rowwise(provider, alone), batch, strict=True):
            if not _same_bits(one, of_batch[only]):
                return False
    return True


def _thread_count(provider: Provider, type_name: str) -> bool:
    problem = _problem(type_name)
    results = []
    for threads in THREAD_COUNTS:
        with _threads(threads):
            results.append((_forward(provider, problem), *_backward(provider, problem)))
    return all(
        _same_bits(one, another)
        for result in results[1:]
        for one, another in zip(results[0], result, strict=True)
    )


def _constant(provider: Provider, type_name: str) -> bool:
    constant = {"constant rows", "constant, eps 0", "1 column"}
    return all(
        bool((_forward(provider, problem) == problem.bias).all())
        for problem in (
            each.problem(type_name) for each in inputs(quick=True) if each.name in constant
        )
    )


def _not_finite(provider: Provider, type_name: str) -> bool:
    problem = _problem(type_name, rows=32)
    clean = _forward(provider, problem)
    x = problem.x.copy()
    x[3, 5], x[10, COLS - 1], x[21, 0] = np.nan, np.inf, -np.inf
    y = _forward(provider, replace(problem, x=x))
    touched = np.isin(np.arange(32), (3, 10, 21))
    return bool(np.isnan(y[touched]).all()) and _same_bits(y[~touched], clean[~touched])


def _problem(type_name: str, *, rows: int = ROWS) -> Problem:
    return make_problem((rows, COLS), type_name)


def _forward(provider: Provider, problem: Problem) -> Array:
    return provider.arrays(provider.forward(problem)())[0]


def _backward(provider: Provider, problem: Problem) -> tuple[Array, ...]:
    """Return dx, dweight and dbias; nothing if the framework has no gradients."""
    try:
        return provider.arrays(provider.backward(problem)())
    except Unsupported:
        return ()


def _rowwise(provider: Provider, problem: Problem) -> tuple[Array, ...]:
    return (_forward(provider, problem), *_backward(provider, problem)[:1])


def _same_bits(one: Array, another: Array) -> bool:
    return one.tobytes() == another.tobytes()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = layernorm.get_num_threads()
    layernorm.set_num_threads(count)
    try:
        yield
    finally:
        layernorm.set_num_threads(before)
