"""The examples of README.md and of docs/index.md run as they stand, each in its own process."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from own_process import run

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("document", ["README.md", "docs/index.md"])
@pytest.mark.parametrize(("place", "framework"), [(0, "numpy"), (1, "torch"), (2, "keras")])
def test_an_example_runs(document, place, framework) -> None:
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"could not import {framework}")
    code = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)[place]
    assert f"layernorm.{framework}" in code
    done = run([sys.executable, "-c", code], KERAS_BACKEND="torch")
    if document == "README.md" and framework == "numpy":  # it learns y = 2 x + 1
        assert done.stdout.count(" 2.") + done.stdout.count("[2.") == 16
        assert done.stdout.count(" 1.") + done.stdout.count("[1.") == 16


def test_the_chinese_readme_has_the_structure_of_the_english_one() -> None:
    english, chinese = (structure(ROOT / name) for name in ("README.md", "README.zh.md"))
    for part in english:
        assert chinese[part] == english[part], part


def structure(document) -> dict:
    """Return what a translation keeps. In links, layer.zh.md counts as layer.md."""
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"^```.*?^```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return {
        "code": [re.sub(r" *#.*", "", block) for block in blocks],
        "links": [link.replace(".zh.", ".") for link in re.findall(r"\]\(([^)]+)\)", prose)],
        "headings": re.findall(r"^#+ ", prose, re.MULTILINE),
        "cells of each row": [row.count("|") for row in re.findall(r"^\|.*", prose, re.MULTILINE)],
        "numbers": set(re.findall(r"\d+(?:[.,]\d+)*", prose)),  # a set: order may differ
        "inline code": {" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)},
    }
