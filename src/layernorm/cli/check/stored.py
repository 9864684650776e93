"""Reports of `layernorm check` as JSON."""

from dataclasses import asdict
from typing import Any

from layernorm.cli.check.results import Report


def as_dict(report: Report) -> dict[str, Any]:
    """Return the report in values that JSON can hold."""
    return {
        "command": "check",
        "version": report.version,
        "holds": report.holds,
        "machine": report.machine,
        "versions": report.versions,
        "missing_peers": report.missing,
        "failed_peers": report.failures,
        "ours": [{**asdict(each), "holds": each.holds} for each in report.ours],
        "promises": [{**asdict(each), "holds": each.holds} for each in report.promises],
        "peers": [asdict(each) for each in report.peers],
    }
