"""A pytest plugin that writes each failure as a line of JSON, at once.

FAILURES=failures.jsonl PYTHONPATH=benchmarks pytest -p failures_as_json
"""

import json
import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # xdist's workers report to the process that wrote this
        config.pluginmanager.register(Failures(os.environ["FAILURES"]))


class Failures:
    def __init__(self, path: str) -> None:
        self.file = open(path, "a")  # noqa: SIM115

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.write(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.write(report)

    def write(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = str(crash.message if crash else report.longrepr)
            line = {"test": report.nodeid, "when": report.when, "message": message[:1000]}
            print(json.dumps(line), file=self.file, flush=True)
