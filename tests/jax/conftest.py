"""Ignores the warnings of Flax's own code, and enables float64 for the tests that ask for it.

The tests compile many programs and run each once, so LLVM optimizes only those of the formulas in
test_jax_contract.py. XLA's own passes run as ever.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

_OF_FLAX = ("ignore::DeprecationWarning:flax", "ignore::DeprecationWarning:orbax")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for each in _OF_FLAX:
                item.add_marker(pytest.mark.filterwarnings(each))


@pytest.fixture
def x64() -> Iterator[None]:
    """Enable float64 in JAX for one test."""
    from jax_renamed import enable_x64

    with enable_x64(True):
        yield
