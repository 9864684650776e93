"""Runs one probe on more than 2^31 or 2^32 elements: python many_elements.py PROBE GIB.

The rows are copies of a few different ones, so the right answer is that of the few. The process
may use at most GIB of memory.
"""

import resource
import sys
from dataclasses import replace

import numpy as np

import layernorm.numpy as ours

CHANNELS = 2048
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal(CHANNELS).astype(np.float32)
# 61 and 5 are primes and 1025 is odd: no block of the kernels is a whole number of copies.
ROWS = {"shape": (61, CHANNELS), "axis": -1}
CHANNELS_FIRST = {"shape": (5, CHANNELS, 1025), "axis": 1}


def a_few(shape: tuple[int, ...]) -> np.ndarray:
    return (RNG.standard_normal(shape, np.float32) + 1).astype(np.float16)


def many(few: np.ndarray, elements: int) -> np.ndarray:
    """Repeat the few until there are more than `elements`."""
    times = elements // few.size + 1
    repeated = np.empty((times, *few.shape), few.dtype)
    repeated[:] = few
    return repeated.reshape(-1, *few.shape[1:])


def assert_all_are_copies(few: np.ndarray, repeated: np.ndarray) -> None:
    expected = few.reshape(-1).view(np.uint64)
    for number, copy in enumerate(repeated.reshape(-1, few.size)):
        assert (copy.view(np.uint64) == expected).all(), f"copy {number} differs"


def check_forward(shape: tuple[int, ...], axis: int) -> None:
    few = a_few(shape)
    x = many(few, 2**32)
    ours.layer_norm(x, WEIGHT, axis=axis, out=x)
    assert_all_are_copies(ours.layer_norm(few, WEIGHT, axis=axis), x)


def statistics_of_many(few: np.ndarray, axis: int, times: int) -> tuple[ours.Stats, ours.Stats]:
    _, stats = ours.layer_norm_forward(few, WEIGHT, axis=axis)
    copies = (times, *(1,) * (few.ndim - 1))
    names = ("mean", "rstd", "residual")
    return stats, replace(stats, **{name: np.tile(getattr(stats, name), copies) for name in names})


def check_parameters(shape: tuple[int, ...], axis: int) -> None:
    few = a_few(shape)
    x = many(few, 2**32)
    times = len(x) // len(few)
    few_stats, stats = statistics_of_many(few, axis, times)
    _, *sums = ours.layer_norm_backward(x, x, stats, WEIGHT, need_dx=False)
    _, *few_sums = ours.layer_norm_backward(few, few, few_stats, WEIGHT, need_dx=False)
    for total, of_few in zip(sums, few_sums, strict=True):
        # Not the contract's bound: the rounding of the few sums counts `times` times.
        terms = 2.0 * np.prod(shape) / CHANNELS
        np.testing.assert_allclose(total / times, of_few, rtol=1e-5, atol=1e-6 * terms)


def check_dx(shape: tuple[int, ...], axis: int) -> None:
    few = a_few(shape)
    x = many(few, 2**31)
    few_stats, stats = statistics_of_many(few, axis, len(x) // len(few))
    expected, _, _ = ours.layer_norm_backward(few, few, few_stats, WEIGHT)
    dx, _, _ = ours.layer_norm_backward(x, x, stats, WEIGHT)
    assert_all_are_copies(expected, dx)


PROBES = {
    "forward_of_rows": lambda: check_forward(**ROWS),
    "forward_of_channels_first": lambda: check_forward(**CHANNELS_FIRST),
    "parameters_of_rows": lambda: check_parameters(**ROWS),
    "parameters_of_channels_first": lambda: check_parameters(**CHANNELS_FIRST),
    "dx_of_rows": lambda: check_dx(**ROWS),
    "dx_of_channels_first": lambda: check_dx(**CHANNELS_FIRST),
}

if __name__ == "__main__":
    limit = int(sys.argv[2]) * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    PROBES[sys.argv[1]]()
