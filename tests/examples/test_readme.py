"""The examples of README.md run as they stand, each in a process of its own."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from own_process import run

README = (Path(__file__).parents[2] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize(("place", "framework"), [(0, "numpy"), (1, "torch"), (2, "keras")])
def test_an_example_runs(place, framework) -> None:
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"could not import {framework}")
    code = EXAMPLES[place]
    assert f"layernorm.{framework}" in code
    done = run([sys.executable, "-c", code], KERAS_BACKEND="torch")
    if framework == "numpy":  # it learns y = 2 x + 1
        assert done.stdout.count(" 2.") + done.stdout.count("[2.") == 16
        assert done.stdout.count(" 1.") + done.stdout.count("[1.") == 16
