"""Calling a case on an implementation, and comparing bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from cases import Case
from layouts import Array

Gradients = tuple[Array | None, Array | None, Array | None]


def forward(impl: Any, case: Case, x: Array, weight: Array | None, bias: Array | None, **options):
    """Call the case's forward: y and stats."""
    dirty_freed_memory(x.nbytes)
    if case.kind == "rms_norm":
        return impl.rms_norm_forward(x, weight, **case.definition, **options)
    return impl.layer_norm_forward(x, weight, bias, **case.definition, **options)


def backward(
    impl: Any, case: Case, dy: Array, x: Array, stats: Any, weight: Array | None, **options
) -> Gradients:
    """Call the case's backward: dx, dweight, dbias, which is None for RMS norm; and dgate."""
    options.setdefault("need_dweight", True)
    options["zero_centered_weight"] = case.zero_centered_weight
    dirty_freed_memory(x.nbytes)
    if case.kind == "rms_norm":
        dx, dweight, *dgate = impl.rms_norm_backward(dy, x, stats, weight, **options)
        return dx, dweight, None, *dgate
    return impl.layer_norm_backward(dy, x, stats, weight, **options)


def forward_and_backward(impl: Any, case: Case, x, dy, weight, bias) -> dict[str, Array]:
    """Return y, the statistics, dx, dweight and dbias by name, without those that are None."""
    y, stats = forward(impl, case, x, weight, bias)
    dx, dweight, dbias = backward(impl, case, dy, x, stats, weight)
    results = {"y": y, "mean": stats.mean, "rstd": stats.rstd, "residual": stats.residual}
    results |= {"dx": dx, "dweight": dweight, "dbias": dbias}
    return {name: result for name, result in results.items() if result is not None}


def dirty_freed_memory(size: int) -> None:
    """Leave NaN, in any type, where the allocator's next block of this size is likely to be."""
    np.full(size, 0xFF, np.uint8)


def bits(array: Array) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def assert_same_bits(got: Array, expected: Array, what: str) -> None:
    assert got.dtype == expected.dtype, f"{what}: type {got.dtype}, expected {expected.dtype}"
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    if bits(got) == bits(expected):
        return
    unsigned = f"u{got.itemsize}"
    differ = np.ascontiguousarray(got).view(unsigned) != np.ascontiguousarray(expected).view(
        unsigned
    )
    at = tuple(int(i) for i in np.argwhere(differ.reshape(got.shape))[0])
    raise AssertionError(
        f"{what}: {differ.sum()} of {got.size} elements have other bits, the first at {at}: "
        f"{got[at]!r}, expected {expected[at]!r}"
    )


def assert_same_numbers(got: Array, expected: Array, what: str) -> None:
    """Assert the same bits, but of NaNs."""
    is_nan = np.isnan(got.astype(np.float64)) & np.isnan(expected.astype(np.float64))
    without = [np.where(is_nan, 0, each).astype(each.dtype) for each in (got, expected)]
    assert_same_bits(*without, what)


def assert_equal_values(got: Array, expected: Array, what: str) -> None:
    exact = np.longdouble if got.dtype.itemsize > 4 else np.float64
    same = got.astype(exact) == expected.astype(exact)
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    assert same.all(), f"{what}: {got[~same].ravel()[:3]}, expected {expected[~same].ravel()[:3]}"


@contextmanager
def unchanged(**arrays: Array | None) -> Iterator[None]:
    """Assert that the inputs have the same bits afterwards."""
    before = {name: bits(array) for name, array in arrays.items() if array is not None}
    yield
    for name, old in before.items():
        assert bits(arrays[name]) == old, f"{name} was written to"
