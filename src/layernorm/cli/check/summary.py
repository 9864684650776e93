"""The worst errors in each type."""

from collections.abc import Iterable
from dataclasses import dataclass

from layernorm.cli.check.results import Measurement, Report


@dataclass(frozen=True)
class TypeSummary:
    """Our worst errors in one type, and the worst y of any peer."""

    type: str
    y: Measurement | None
    dx: Measurement | None
    parameters: Measurement | None  # dweight or dbias
    peer_y: Measurement | None


def summarize(report: Report) -> list[TypeSummary]:
    """Sum up each type, in the order in which they were measured."""
    return [
        TypeSummary(
            type=name,
            y=_worst(report.ours, name, ("y",)),
            dx=_worst(report.ours, name, ("dx",)),
            parameters=_worst(report.ours, name, ("dweight", "dbias")),
            peer_y=_worst(report.peers, name, ("y",)),
        )
        for name in dict.fromkeys(each.type for each in report.ours)
    ]


def _worst(
    measurements: Iterable[Measurement], type_name: str, parts: tuple[str, ...]
) -> Measurement | None:
    found = (each for each in measurements if each.type == type_name and each.part in parts)
    return max(found, key=lambda each: each.error, default=None)
