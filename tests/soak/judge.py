"""Judges a case by the contract: `check(Case(...))` raises AssertionError for a wrong result."""

import contextlib
import importlib
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import calls_numpy
import numpy as np
from calls import assert_equal_values, assert_same_bits, dirty_freed_memory, unchanged
from cases import Arrays
from checkers import judge_gradients, judge_statistics, judge_y
from draw import SETS_THREADS
from layouts import Array, dense, laid_out, poisoned, rows_of
from soak_case import Case
from values import dtype_of, statistics_type

Results = dict[str, Array]

SECONDS_OF_A_FORK = 60


def check(case: Case) -> None:
    """Call the front end, and judge everything that it returns."""
    front_end = front_end_of(case.framework)
    arrays = case.arrays()
    with np.errstate(all="ignore"), number_of_threads(front_end, case.threads):
        dirty_freed_memory(arrays.x.nbytes)
        with unchanged(**arrays._asdict()):
            got = results(front_end, case, arrays)
        judge(case, arrays, got)
        if case.also:
            FURTHER[case.also](front_end, case, arrays, got)


def front_end_of(framework: str) -> ModuleType:
    """Return calls_numpy.py or one like it."""
    return importlib.import_module(f"calls_{framework.partition('_')[0]}")


def results(front_end: ModuleType, case: Case, arrays: Arrays) -> Results:
    found = front_end.results(case, *arrays)
    return {name: result for name, result in found.items() if result is not None}


def judge(case: Case, arrays: Arrays, got: Results) -> None:
    x, dy, weight, bias = arrays
    parameter_type = dtype_of(case.parameter_dtype or case.dtype)
    of_x = (case.shape, dtype_of(case.dtype))
    of_statistics = (case.statistics_shape, statistics_type(case.dtype))
    expected = dict.fromkeys(("y", "dx"), of_x)
    expected |= dict.fromkeys(("mean", "rstd", "residual"), of_statistics)
    expected |= dict.fromkeys(("dweight", "dbias"), (case.normalized_shape, parameter_type))
    for name, result in got.items():
        form = (result.shape, result.dtype)
        assert form == expected[name], f"{name} has {form}, expected {expected[name]}: {case}"
    judge_y(case, got["y"], x, weight, bias)
    # Where dy is not finite, any NaN or infinity is right.
    is_finite = np.isfinite(dy.astype(np.float64))
    finite_dy = np.where(is_finite, dy, dy.dtype.type(np.nan))
    columns = rows_of(~is_finite, case.axis).any(axis=0).reshape(case.normalized_shape)
    sums = (got.get(name) for name in ("dweight", "dbias"))
    sums = (each if each is None else nan_for_infinity(each, columns) for each in sums)
    judge_gradients(case, (got.get("dx"), *sums), finite_dy, x, weight)
    if "rstd" in got and x.size:
        judge_statistics(case, *(got.get(each) for each in ("mean", "rstd", "residual")), x)
    if case.way == "xla":  # a formula
        return
    judge_edges(case, arrays, got)
    if case.framework != "torch" or case.is_contiguous:
        judge_bits(case, arrays, got)


def nan_for_infinity(array: Array, where: Array) -> Array:
    is_infinite = np.isinf(array.astype(np.float64))
    return np.where(where & is_infinite, array.dtype.type(np.nan), array)


def judge_edges(case: Case, arrays: Arrays, got: Results) -> None:
    """Judge what docs/specification.md, "Edges", says of rows."""
    x, dy, _, bias = arrays
    if x.size == 0:
        for name in ("dweight", "dbias"):
            if name in got:
                assert_equal_values(got[name], np.zeros_like(got[name]), f"{name}: {case}")
        return
    rows = rows_of(x, case.axis)
    constant = (rows == rows[:, :1]).all(axis=1) & np.isfinite(rows[:, 0].astype(np.float64))
    if case.kind == "rms_norm":
        constant &= rows[:, 0] == 0
    y = rows_of(got["y"], case.axis)[constant]
    one_row = np.zeros(rows.shape[1], y.dtype) if bias is None else bias.reshape(-1).astype(y.dtype)
    assert_equal_values(y, np.broadcast_to(one_row, y.shape), f"y of constant rows: {case}")
    if "dx" not in got:
        return
    dx = rows_of(got["dx"], case.axis).astype(np.float64)
    dy_is_finite = np.isfinite(rows_of(dy, case.axis).astype(np.float64)).all(axis=1)
    assert np.isnan(dx[~dy_is_finite]).all(), f"dx is not NaN where dy is not finite: {case}"
    if case.eps == 0:
        flat = dx[constant & dy_is_finite]
        assert (flat == 0).all(), f"dx of constant rows is not 0 for eps = 0: {case}"


def judge_bits(case: Case, arrays: Arrays, got: Results) -> None:
    """The bits are those of `layernorm.numpy` for contiguous arrays, if those here are."""
    if case.framework == "numpy" and not case.is_contiguous:
        return
    x, dy, weight, bias = (dense(each) for each in arrays)
    same = case.but(framework="numpy", way="functions", need="dx dweight dbias", passes_eps=True)
    expected = calls_numpy.results(same, x, dy, weight, bias)
    assert_same_results(got, expected, f"beside layernorm.numpy: {case}")


def assert_same_results(got: Results, expected: Results, what: str) -> None:
    """Compare bits; of rows without elements only y and the gradients."""
    for name, result in got.items():
        if name in ("mean", "rstd", "residual") and not got["y"].size:
            continue
        assert_same_bits(result, expected[name], f"{name} {what}")


@contextlib.contextmanager
def number_of_threads(front_end: ModuleType, count: int) -> Iterator[None]:
    """Set the number, if the front end has a function for that."""
    if hasattr(front_end, "set_num_threads"):
        front_end.set_num_threads(count)
    yield


def check_alone(front_end: ModuleType, case: Case, arrays: Arrays, got: Results) -> None:
    """One sample alone gets the bits that it gets in the batch."""
    x, dy, weight, bias = arrays
    index = case.seed % len(x)
    only = slice(index, index + 1)
    alone = case.but(shape=(1, *case.shape[1:]))
    found = results(front_end, alone, Arrays(x[only], dy[only], weight, bias))
    for name in ("y", "dx"):
        if name in got:
            assert_same_bits(found[name], got[name][only], f"{name} of one sample alone: {case}")


def check_threads(front_end: ModuleType, case: Case, arrays: Arrays, got: Results) -> None:
    """Other numbers of threads give the same bits."""
    assert case.framework in SETS_THREADS
    for count in (1, 2, 3):
        with number_of_threads(front_end, count):
            found = results(front_end, case, arrays)
        assert_same_results(got, found, f"on {case.threads} threads, not {count}: {case}")


def check_python_threads(front_end: ModuleType, case: Case, arrays: Arrays, got: Results) -> None:
    """Several Python threads at once get the same bits."""
    with ThreadPoolExecutor(4) as pool:
        every = list(pool.map(lambda _: results(front_end, case, arrays), range(8)))
    for found in every:
        assert_same_results(got, found, f"among Python threads: {case}")


def check_out(front_end: ModuleType, case: Case, arrays: Arrays, got: Results) -> None:
    """An `out` of other strides gets the same bits, and every element is written."""
    x, _, weight, bias = arrays
    out = poisoned(x.shape, x.dtype)
    if case.dy_memory is not None and 0 not in case.dy_memory.steps:
        out = laid_out(out, case.dy_memory)
    with_eps = case.but(passes_eps=True)
    fresh = front_end.without_statistics(with_eps, x, weight, bias)
    written = front_end.without_statistics(with_eps, x, weight, bias, out)
    assert_same_bits(written, fresh, f"out: {case}")


def check_in_place(front_end: ModuleType, case: Case, arrays: Arrays, got: Results) -> None:
    x, _, weight, bias = arrays
    if not x.flags.writeable:  # a step of 0
        x = x.copy()
    expected = front_end.without_statistics(case, x, weight, bias)
    written = front_end.without_statistics(case, x, weight, bias, x)
    assert written is x
    assert_same_bits(x, expected, f"y in place: {case}")


def check_fork(front_end: ModuleType, case: Case, arrays: Arrays, got: Results) -> None:
    """A child process gets the same bits. As in PyTorch's loaders, it has one thread there."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(SECONDS_OF_A_FORK)
            count = 1 if case.framework == "torch" else case.threads
            for _ in range(2):
                with number_of_threads(front_end, count):
                    assert_same_results(results(front_end, case, arrays), got, "in the child")
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    took_long = f", after {SECONDS_OF_A_FORK} s" if status == signal.SIGALRM else ""
    assert status == 0, f"the child of a fork ended with status {status}{took_long}: {case}"


FURTHER: dict[str, Callable[[ModuleType, Case, Arrays, Results], None]] = {
    "alone": check_alone,
    "threads": check_threads,
    "python_threads": check_python_threads,
    "out": check_out,
    "in_place": check_in_place,
    "fork": check_fork,
}
