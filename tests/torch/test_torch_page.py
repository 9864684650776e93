"""The examples of docs/torch.md run as they stand."""

import doctest
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

PAGE = Path(__file__).parents[2] / "docs" / "torch.md"


def test_the_page_runs() -> None:
    if "bias" not in repr(torch.nn.LayerNorm(1)):
        pytest.skip("the page shows layers as newer versions of PyTorch print them")
    failures, tried = doctest.testfile(str(PAGE), module_relative=False)
    assert tried > 10
    assert failures == 0
