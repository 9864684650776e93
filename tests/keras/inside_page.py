"""Run by test_keras.py in a process of its own: the examples of docs/keras.md run as they stand."""

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "keras.md"


def test_the_page_runs() -> None:
    failures, tried = doctest.testfile(str(PAGE), module_relative=False)
    assert tried > 10
    assert failures == 0
