"""The results of `layernorm bench`."""

from dataclasses import dataclass, field
from typing import Any

from layernorm.cli.bench.cells import Cell

OURS, COPY = "layernorm", "copy"


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median of the samples and their quartiles."""

    median: float
    lower: float
    upper: float
    samples: int


@dataclass(frozen=True)
class Result:
    """One provider in one cell. A wrong result of ours is not timed: its `timing` is None."""

    cell: Cell
    threads: int
    provider: str
    timing: Timing | None
    errors: dict[str, float] = field(default_factory=dict)
    within_bounds: bool = True

    @property
    def gigabytes_a_second(self) -> float:
        """Useful bytes a second; those of a copy are the bytes it reads and writes."""
        assert self.timing is not None
        size = self.cell.useful_bytes
        if self.provider == COPY and self.cell.direction == "backward":
            size = size // 3 * 2
        return size / self.timing.median / 1e9


@dataclass(frozen=True)
class Report:
    """All results, and what they were measured with."""

    version: str
    machine: dict[str, Any]
    results: list[Result]
    versions: dict[str, str]
    missing: dict[str, str]
    failures: dict[str, str]
    repeats: int
    other_load: float | None
    """Processors that other programs kept busy meanwhile."""

    @property
    def is_right(self) -> bool:
        """Whether all of our results were accurate enough to be timed."""
        return all(each.timing is not None for each in self.results)
