"""A pytest plugin that writes each failure as a line of JSON, at once.

FAILURES=failures.jsonl PYTHONPATH=benchmarks pytest -p failures_as_json
"""

import json
import os
import time

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # a worker of xdist, which reports to the first process
        config.pluginmanager.register(Ends())
    else:
        config.pluginmanager.register(Failures(os.environ["FAILURES"]))


class Ends:
    is_broken = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.is_broken = self.is_broken or (report.failed and "CUDA error" in report.longreprtext)

    def pytest_runtest_logfinish(self) -> None:
        if self.is_broken:
            time.sleep(1)  # the report is sent by another thread
            os._exit(1)


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
