"""Section 5 of the contract: more than 2^31 elements, in a process of its own."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
fcntl = pytest.importorskip("fcntl", reason="this system has no file locks of this kind")

PROBE = Path(__file__).with_name("many_elements_of_torch.py")
GIB = 11  # x and y, or x and dx, take 4 each in 16 bits, and what PyTorch itself has


def free_gib() -> float:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 0
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) / 2**20


@pytest.fixture
def no_other_probe() -> Iterator[None]:
    """Wait for those that other workers run: two together may be too many for the memory."""
    with open(Path(tempfile.gettempdir()) / "layernorm_many_elements.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("no_other_probe")
@pytest.mark.parametrize("probe", ["forward", "backward"])
def test_more_than_2_to_the_31_elements_give_the_right_answer(probe) -> None:
    if free_gib() < GIB + 2:
        pytest.skip(f"needs {GIB + 2} GiB of free memory")
    command = [sys.executable, str(PROBE), probe]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
