"""Running a probe that takes gigabytes: in a process of its own, and while no other does."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from own_process import run_script

fcntl = pytest.importorskip("fcntl", reason="this system has no file locks of this kind")


def run_alone(probe: Path, *arguments: str, gib: int) -> None:
    """Run a probe that takes so many GiB; skip where they are not free."""
    with _no_other_probe():
        if _free_gib() < gib + 2:
            pytest.skip(f"needs {gib + 2} GiB of free memory")
        run_script(probe, *arguments, timeout=600)


@contextmanager
def _no_other_probe() -> Iterator[None]:
    """Wait for those that other workers run: two together may be too many for the memory."""
    with open(Path(tempfile.gettempdir()) / "layernorm_many_elements.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _free_gib() -> float:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 0
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) / 2**20
