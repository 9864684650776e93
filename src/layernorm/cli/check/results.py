"""The results of `layernorm check`."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """The worst error of one provider for one input in one type, in ulp."""

    input: str
    type: str
    provider: str
    part: str  # y, dx, dweight, dbias
    error: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the error is within the contract's bound."""
        return self.error <= self.bound


@dataclass(frozen=True)
class Promise:
    """One promise that holds or not, and the types in which it is broken."""

    text: str
    broken: list[str]

    @property
    def holds(self) -> bool:
        """Whether it is broken in no type."""
        return not self.broken


@dataclass(frozen=True)
class Report:
    """All measurements. `holds` concerns ours alone: the peers do not promise our bounds."""

    version: str
    machine: dict[str, Any]
    ours: list[Measurement]
    peers: list[Measurement]
    promises: list[Promise]
    versions: dict[str, str]
    missing: dict[str, str]
    failures: dict[str, str]

    @property
    def holds(self) -> bool:
        """Whether we keep the contract."""
        return all(each.holds for each in self.ours) and all(each.holds for each in self.promises)
