"""Times calls: interleaved, repeated, one at a time, with warm or cold caches."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import Any

import numpy as np

from layernorm.cli.bench.results import Timing

Call = Callable[[], Any]

REPEATS = 30

SAMPLE_SECONDS = 1e-3
"""A sample of shorter calls is a loop of them, so that reading the clock does not count."""

WARMING_CALLS = 8
WARMING_SECONDS = 0.02
"""Untimed calls before each sample: at most so many, and no more than fit into this time. A cache
that others have filled takes several calls to refill: a copy of 12 MB gained speed up to its
sixth call."""

LONG_CALL_SECONDS = 0.1
LONG_WORK_SECONDS = 1.5
FEWEST_REPEATS = 5
"""Longer calls than LONG_CALL_SECONDS have about LONG_WORK_SECONDS, for FEWEST_REPEATS or more."""


def interleave(
    calls: Mapping[str, Call], *, repeats: int = REPEATS, evict: Call | None = None
) -> dict[str, Timing]:
    """Time the calls in turns (A B C, B C A, ...), so that other load affects all alike.

    Every sample waits until the threads of the one before sleep: a pool that spins for work would
    slow the next sample down. Then some calls are made untimed, which wakes the call's own threads
    and brings its data into the cache; or, with `evict`, the caches are emptied.
    """
    loops = {
        name: _choose_loop(call, repeats=repeats, warm=evict is None)
        for name, call in calls.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    with _without_garbage_collection():
        for turn in range(max((loop.samples for loop in loops.values()), default=0)):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                loop = loops[name]
                if turn >= loop.samples:
                    continue
                _wait_until_quiet()
                if evict is not None:
                    evict()
                elif loop.warming_calls:
                    _time(calls[name], loop.warming_calls)
                samples[name].append(_time(calls[name], loop.calls_a_sample))
    return {name: _summarize(taken) for name, taken in samples.items()}


@dataclass(frozen=True)
class _Loop:
    samples: int
    calls_a_sample: int
    warming_calls: int  # before each sample


def _choose_loop(call: Call, *, repeats: int, warm: bool) -> _Loop:
    call()
    seconds = _time(call, 1)
    if seconds < SAMPLE_SECONDS:
        seconds = _time(call, 10)
    calls_a_sample = max(1, min(10_000, int(SAMPLE_SECONDS / seconds))) if warm else 1
    if seconds > LONG_CALL_SECONDS:  # its data do not fit into a cache: nothing to warm
        repeats = min(repeats, max(FEWEST_REPEATS, int(LONG_WORK_SECONDS / seconds)))
        return _Loop(repeats, calls_a_sample, 0)
    fitting = max(1, min(WARMING_CALLS, int(WARMING_SECONDS / seconds)))
    return _Loop(repeats, calls_a_sample, max(fitting, calls_a_sample // 4))


def _time(call: Call, count: int) -> float:
    start = time.perf_counter()
    for _ in repeat(None, count):
        call()
    return (time.perf_counter() - start) / count


def _summarize(samples: list[float]) -> Timing:
    lower, median, upper = statistics.quantiles(samples, n=4) if len(samples) > 1 else samples * 3
    return Timing(median, lower, upper, len(samples))


def _wait_until_quiet(*, at_most: float = 0.05) -> None:
    """Sleep until no other thread of this process uses the processor."""
    deadline = time.perf_counter() + at_most
    pause = 0.0005
    while time.perf_counter() < deadline:
        before, start = time.process_time(), time.perf_counter()
        time.sleep(pause)
        used, passed = time.process_time() - before, time.perf_counter() - start
        if used < 0.2 * passed:
            return


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Memory:
    """Copies memory with the given number of threads, and empties caches."""

    def __init__(self, threads: int, *, cache_bytes: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._ballast = np.zeros(2 * cache_bytes // 8)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def evict(self) -> None:
        """Read twice the size of the largest cache on every thread."""
        list(self._pool.map(np.max, [self._ballast] * self._threads))

    def copies(self, size: int, *, fresh: bool) -> dict[str, Call]:
        """Return calls that copy `size` bytes, by one thread and, if large, by all threads.

        With `fresh`, into newly allocated memory.
        """
        source = np.ones(size, np.uint8)
        target = np.empty_like(source)
        target.fill(0)

        def alone() -> None:
            np.copyto(np.empty_like(source) if fresh else target, source)

        def together() -> None:
            into = np.empty_like(source) if fresh else target
            bounds = np.linspace(0, size, self._threads + 1).astype(int)
            parts = [slice(*each) for each in pairwise(bounds)]
            futures = [self._pool.submit(np.copyto, into[part], source[part]) for part in parts[1:]]
            np.copyto(into[parts[0]], source[parts[0]])
            for future in futures:
                future.result()

        if self._threads == 1 or size < 2**20:
            return {"copy": alone}
        return {"copy": alone, "copy by all": together}
