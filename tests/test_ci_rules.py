"""conftest.py's rules, tried on a folder of tests of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")

SKIPS = {
    "in_a_test": "import pytest\ndef test_it():\n    pytest.importorskip('no_such_framework')\n",
    "in_a_module": (
        "import pytest\npytest.importorskip('no_such_framework')\ndef test_it():\n    pass\n"
    ),
    "in_a_fixture": (
        "import pytest\n@pytest.fixture\ndef it():\n    pytest.importorskip('no_such_framework')\n"
        "def test_it(it):\n    pass\n"
    ),
}
OTHER_SKIP = "import pytest\ndef test_it():\n    pytest.skip('this machine has no such thing')\n"
SLOW = "import pytest\n@pytest.mark.slow\ndef test_it():\n    assert False\n"


def run(folder: Path, test: str, *, ci: str, options: tuple[str, ...] = ()) -> str:
    """Run one file of tests under our conftest.py; return pytest's last line."""
    shutil.copy(CONFTEST, folder)
    (folder / "test_it.py").write_text(test)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "."]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment | {"CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("test", SKIPS.values(), ids=SKIPS)
def test_a_missing_framework_is_a_failure_in_ci(tmp_path, test) -> None:
    summary = run(tmp_path, test, ci="true")
    assert "1 failed" in summary or "1 error" in summary
    assert "1 skipped" in run(tmp_path, test, ci="")


def test_another_skip_is_no_failure_in_ci(tmp_path) -> None:
    assert "1 skipped" in run(tmp_path, OTHER_SKIP, ci="true")


def test_slow_tests_run_in_ci_and_on_demand(tmp_path) -> None:
    assert "1 failed" in run(tmp_path, SLOW, ci="true")
    assert "1 skipped" in run(tmp_path, SLOW, ci="")
    assert "1 failed" in run(tmp_path, SLOW, ci="", options=("-m", "slow"))


def test_ci_tries_several_thousand_made_up_cases(tmp_path) -> None:
    show = "from hypothesis import settings\ndef test_it():\n    s = settings()\n"
    expected = "    assert s.max_examples >= 400 and s.derandomize and s.deadline is None\n"
    assert "1 passed" in run(tmp_path, show + expected, ci="true")
