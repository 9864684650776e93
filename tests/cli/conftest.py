"""Commands with little to measure, and our provider with wrong functions."""

from types import SimpleNamespace

import pytest

from layernorm import numpy as front_end


@pytest.fixture
def tiny_check(monkeypatch):
    """Check two inputs instead of all."""
    from layernorm.cli.check import measure
    from layernorm.cli.check.inputs import inputs

    few = [each for each in inputs(quick=True) if each.name in ("3 columns", "mean 1e2 std")]
    monkeypatch.setattr(measure, "inputs", lambda quick: few)


@pytest.fixture
def tiny_bench(monkeypatch):
    """Time a few small cells as the quick plan."""
    from tiny_cells import CELLS

    from layernorm.cli.bench import cells, measure

    monkeypatch.setitem(cells.PLANS, "quick", lambda: CELLS)
    monkeypatch.setattr(measure, "last_level_cache_bytes", lambda: 2**16)


@pytest.fixture
def replace_in_ours(monkeypatch):
    """Replace some functions of our provider's front end."""

    from layernorm.cli.providers import ours

    def replace(**functions):
        own = {name: getattr(front_end, name) for name in front_end.__all__}
        monkeypatch.setattr(ours, "front_end", SimpleNamespace(**{**own, **functions}))

    return replace
