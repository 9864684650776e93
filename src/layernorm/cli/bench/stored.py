"""Reports of `layernorm bench` as JSON, and back.

A result is one entry: its cell in the words that `--only` takes, microseconds as [lower quartile,
median, upper quartile], and errors in ulp.
"""

from dataclasses import asdict
from typing import Any

from layernorm.cli.bench.cells import Cell
from layernorm.cli.bench.results import Report, Result, Timing
from layernorm.cli.bench.summary import summarize


def as_dict(report: Report) -> dict[str, Any]:
    """Return the report in values that JSON can hold."""
    return {
        "command": "bench",
        "version": report.version,
        "machine": report.machine,
        "versions": report.versions,
        "missing_peers": report.missing,
        "failed_peers": report.failures,
        "repeats": report.repeats,
        "processors_busy_with_other_programs": report.other_load,
        "summary": [_rounded(asdict(each)) for each in summarize(report.results)],
        "results": [_entry(each) for each in report.results],
    }


def report_from(found: dict[str, Any]) -> Report:
    """Return the report that `as_dict` was given."""
    return Report(
        version=found["version"],
        machine=found["machine"],
        results=[_result(each) for each in found["results"]],
        versions=found["versions"],
        missing=found["missing_peers"],
        failures=found["failed_peers"],
        repeats=found["repeats"],
        other_load=found["processors_busy_with_other_programs"],
    )


def _entry(result: Result) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "cell": result.cell.words,
        "threads": result.threads,
        "provider": result.provider,
    }
    if result.timing is not None:
        timing = result.timing
        quartiles = (timing.lower, timing.median, timing.upper)
        entry["microseconds"] = [_four_digits(1e6 * each) for each in quartiles]
        entry["samples"] = timing.samples
    if result.errors:
        entry["errors"] = _rounded(result.errors)
        entry["within_bounds"] = result.within_bounds
    return entry


def _result(entry: dict[str, Any]) -> Result:
    timing = None
    if "microseconds" in entry:
        lower, median, upper = (1e-6 * each for each in entry["microseconds"])
        timing = Timing(median, lower, upper, entry["samples"])
    errors = {part: float(error) for part, error in entry.get("errors", {}).items()}
    return Result(
        Cell.from_words(entry["cell"]),
        entry["threads"],
        entry["provider"],
        timing,
        errors,
        entry.get("within_bounds", True),
    )


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _four_digits(value) if isinstance(value, float) else value
        for name, value in values.items()
    }


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")
