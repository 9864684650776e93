"""Run by test_tensorflow.py in its own process: the examples of docs/tensorflow.md run as they stand."""

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "tensorflow.md"


def test_the_page_runs() -> None:
    failures, tried = doctest.testfile(str(PAGE), module_relative=False)
    assert tried > 10
    assert failures == 0
