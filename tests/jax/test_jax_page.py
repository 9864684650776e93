"""The examples in docs/jax.md run as written."""

import doctest
import warnings
from pathlib import Path

import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("flax", minversion="0.12")
pytest.importorskip("equinox")

PAGE = Path(__file__).parents[2] / "docs" / "jax.md"


@pytest.mark.skipif(not hasattr(jax, "enable_x64"), reason="the page uses names that JAX 0.7 lacks")
def test_the_page_runs() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Flax warns while it is imported
        failures, tried = doctest.testfile(str(PAGE), module_relative=False)
    assert tried > 10
    assert failures == 0
