"""Rules for every test: markers, hypothesis profiles, and what counts as a failure in CI."""

import importlib.util
import os
import random
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest

from layernorm.cli.import_order import import_triton_before_tensorflow

LONGEST = (
    *("test_tensorflow.py", "test_minilm.py", "test_triton_interpreted.py", "test_keras.py"),
    *("test_every_isa.py", "test_many_elements.py", "test_torch_many_elements.py"),
    "test_lesson.py",
)
IN_CI = os.environ.get("CI", "").lower() in ("1", "true")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: gigabytes of memory or tens of seconds; CI runs it")
    config.addinivalue_line(
        "markers", "starts_python: in a new process, which Python cannot when QEMU runs it"
    )
    config.addinivalue_line("markers", "gpu: runs GPU kernels; in the interpreter without a GPU")
    _hide_folders_of_tests()
    import_triton_before_tensorflow()
    _load_hypothesis_profile()
    _require_the_forced_isa()


def _hide_folders_of_tests() -> None:
    """Keep `import torch` from finding tests/torch where PyTorch is not installed, and so on."""
    for folder in Path(__file__).parent.iterdir():
        spec = importlib.util.find_spec(folder.name) if folder.is_dir() else None
        if spec is not None and spec.origin is None:
            sys.modules[folder.name] = None  # type: ignore[assignment]


def _load_hypothesis_profile() -> None:
    try:
        from hypothesis import HealthCheck, settings
    except ImportError:  # test_properties.py skips, a failure in CI
        return
    # Large arrays are slow to make; that is not a sign of a bad test.
    every = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    fixed = every | {"derandomize": True, "database": None}
    settings.register_profile("ci", max_examples=250, **fixed)
    settings.register_profile("few", max_examples=60, **fixed)  # for each further isa
    settings.register_profile("dev", max_examples=50, **every)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if IN_CI else "dev"))


def _require_the_forced_isa() -> None:
    """Stop a run whose kernels do not use the instruction set that it was meant for."""
    forced = os.environ.get("LAYERNORM_ISA")
    if forced:
        from layernorm import _native

        if _native.isa() != forced:
            raise pytest.UsageError(f"LAYERNORM_ISA={forced}, but the kernels run {_native.isa()}")


def pytest_report_header() -> str:
    from layernorm import _native

    isas = ", ".join(_native.isas())
    return f"instruction set: {_native.isa()} of {isas}; threads: {_native.get_num_threads()}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start the longest tests first; run the slow ones in CI or with `-m slow` only."""
    items[:] = one_case_in(int(os.environ.get("LAYERNORM_EVERY", "1")), items)
    items.sort(key=lambda item: item.path.name not in LONGEST)
    if IN_CI or config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with CI=true or -m slow"))


def one_case_in(every: int, items: list[pytest.Item]) -> list[pytest.Item]:
    """Return one in so many of each test's cases, and at least one, the same ones each time."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept: set[pytest.Item] = set()
    for name, each in cases.items():
        kept.update(random.Random(name).sample(each, -(-len(each) // every)))
    return [item for item in items if item in kept]


def fail_missing_import_in_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI every optional framework is installed: a test that skips without one is a failure."""
    if not (IN_CI and report.skipped):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if "could not import" in reason:
        report.outcome = "failed"
        report.longrepr = f"in CI nothing may be missing: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    fail_missing_import_in_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    fail_missing_import_in_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    """Skip what the reference cannot judge: float64 where np.longdouble is no wider."""
    try:
        yield
    except NotImplementedError as error:
        if np.finfo(np.longdouble).nmant >= 63:
            raise
        pytest.skip(str(error))


@pytest.fixture
def set_num_threads() -> Iterator[object]:
    """Give `layernorm.set_num_threads` for one test."""
    import layernorm

    before = layernorm.get_num_threads()
    yield layernorm.set_num_threads
    layernorm.set_num_threads(before)
