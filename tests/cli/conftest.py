"""Commands made small, and our provider made wrong."""

from types import SimpleNamespace

import pytest

from layernorm import numpy as front_end


@pytest.fixture
def tiny_check(monkeypatch):
    """Check two inputs instead of all."""
    from layernorm.cli import check
    from layernorm.cli.inputs import inputs

    few = [each for each in inputs(quick=True) if each.name in ("3 columns", "mean 1e2 std")]
    monkeypatch.setattr(check, "inputs", lambda quick: few)


@pytest.fixture
def tiny_bench(monkeypatch):
    from tiny_cells import CELLS

    from layernorm.cli import bench, cells

    monkeypatch.setitem(cells.PLANS, "quick", lambda: CELLS)
    monkeypatch.setattr(bench, "last_level_cache_bytes", lambda: 2**16)


@pytest.fixture
def replace_in_ours(monkeypatch):
    """Give our provider another front end, with some functions replaced."""

    from layernorm.cli.providers import ours

    def replace(**functions):
        own = {name: getattr(front_end, name) for name in front_end.__all__}
        monkeypatch.setattr(ours, "front_end", SimpleNamespace(**{**own, **functions}))

    return replace
