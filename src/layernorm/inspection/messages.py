"""What the front ends' `inspect` say alike: errors, and notes in the report."""

from __future__ import annotations

from collections.abc import Iterable

from layernorm.inspection.findings import Norm

NOTHING_TO_CONVERT = "no norm is left to convert, so nothing was compared by time"


def model_raised(model: object, norms: Iterable[Norm], error: Exception) -> str:
    """Return the message for a model that raises."""
    calls = sum(each.calls for each in norms)
    return (
        f"{type(model).__name__} raised {type(error).__name__} on these inputs, after {calls} "
        f"calls of norms: {error}"
    )


def dy_is_random(error: Exception) -> str:
    """Return the note for a model whose backward raises."""
    return f"dy is random, because the model's backward raised {type(error).__name__}: {error}"


def not_measured(name: str, error: Exception) -> str:
    """Return the note for a norm whose call cannot be made again."""
    return f"{name} was not measured: its call, made again, raised {type(error).__name__}: {error}"
