"""This machine: processor, caches, instruction sets, load, and installed distributions."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SYS_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def describe_machine() -> dict[str, Any]:
    """Describe the machine in values that JSON can hold."""
    from layernorm import _native

    return {
        "processor": processor_name(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "usable_processors": usable_processors(),
        "caches": [{"name": name, "bytes": size} for name, size in caches()],
        "isa": _native.isa(),
        "isas": list(_native.isas()),
    }


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, without importing it; None if it is not installed."""
    # The CPU build of TensorFlow is a distribution of its own.
    names = (distribution, "tensorflow-cpu") if distribution == "tensorflow" else (distribution,)
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def usable_processors() -> int:
    """Count the processors that this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def kept_to_processors(count: int) -> Iterator[None]:
    """Keep this process to `count` processors inside the block, where the system can do that.

    A library loaded inside the block then starts no more threads than that, even if it has no
    setting for their number.
    """
    if sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class OtherLoad:
    """How busy other programs keep the processors, which makes timings unreliable."""

    def __init__(self) -> None:
        self._start = _processor_seconds()

    def processors(self) -> float | None:
        """Processors kept busy by others, on average since the start; None if unknown."""
        start, end = self._start, _processor_seconds()
        if start is None or end is None:
            return None
        busy, own, passed = (after - before for before, after in zip(start, end, strict=True))
        return max(0.0, (busy - own) / passed) if passed > 0 else 0.0


def _processor_seconds() -> tuple[float, float, float] | None:
    """Return the busy seconds of all processors, those of this program alone, and the time."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, words[1:9])
    except (OSError, ValueError):
        return None
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy, sum(os.times()[:4]), time.monotonic()


def processor_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def caches() -> list[tuple[str, int]]:
    """List the caches of the first processor, nearest first: ("L1d", 32768), ..."""
    found = []
    for index in sorted(SYS_CACHES.glob("index*")):
        try:
            level = (index / "level").read_text().strip()
            kind = (index / "type").read_text().strip()
            size = _bytes((index / "size").read_text().strip())
        except (OSError, ValueError):
            continue
        if kind != "Instruction":
            found.append((f"L{level}{'d' if kind == 'Data' else ''}", size))
    if not found:
        for name, key in (("L1d", "l1dcachesize"), ("L2", "l2cachesize"), ("L3", "l3cachesize")):
            size_text = _sysctl(f"hw.{key}")
            if size_text.isdigit():
                found.append((name, int(size_text)))
    return found


def last_level_cache_bytes(*, unknown: int = 32 * 2**20) -> int:
    """Size of the largest cache."""
    return max((size for _, size in caches()), default=unknown)


def _bytes(text: str) -> int:
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def _sysctl(key: str) -> str:
    if sys.platform != "darwin":
        return ""
    answer = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=False)
    return answer.stdout.strip()
