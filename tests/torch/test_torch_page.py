"""The examples of docs/torch.md and docs/inspect.md run as they stand."""

import doctest
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("page", "examples"), [("torch.md", 10), ("inspect.md", 5)])
def test_the_page_runs(page, examples) -> None:
    if "bias" not in repr(torch.nn.LayerNorm(1)):
        pytest.skip("the page shows layers as newer versions of PyTorch print them")
    failures, tried = doctest.testfile(str(DOCS / page), module_relative=False)
    assert tried > examples
    assert failures == 0
