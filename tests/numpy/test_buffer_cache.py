"""The buffer cache: the memory of a large output serves the next output of its size."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import layernorm.numpy as ours

X = np.random.default_rng(0).standard_normal((2048, 1024), np.float32)  # 8 MiB
EXPECTED = ours.layer_norm(X)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def page_faults() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="huge pages are Linux's")
@pytest.mark.parametrize("axis", [-1, 0])
def test_the_next_output_reuses_the_memory_of_a_deleted_one(axis) -> None:
    x = np.tile(X, (5, 1))  # 40 MiB, which malloc returns to the system each time
    for _ in range(8):
        ours.layer_norm(x, axis=axis)
    before = page_faults()
    for _ in range(8):
        ours.layer_norm(x, axis=axis)
    # Fresh memory takes at least 20 huge pages a call; Python itself needs a few pages.
    assert page_faults() - before < 8 * 20 / 2


def test_outputs_that_are_alive_share_no_memory() -> None:
    many = [ours.layer_norm(X) for _ in range(12)]
    for y in many:
        np.testing.assert_array_equal(y, EXPECTED)
    assert len({address(y) // X.nbytes for y in many}) == len(many)
    del many[::2]
    many += [ours.layer_norm(X + 1) for _ in range(6)]
    np.testing.assert_array_equal(many[0], EXPECTED)


def test_a_smaller_output_does_not_take_a_much_larger_place() -> None:
    y = ours.layer_norm(X)
    place = address(y)
    del y
    assert address(ours.layer_norm(X[:1100])) != place


def test_outputs_are_arrays_like_any_other() -> None:
    y = ours.layer_norm(X)
    assert y.flags.owndata
    assert y.flags.writeable
    y.resize((4096, 1024), refcheck=False)
    np.testing.assert_array_equal(y[:2048], EXPECTED)
    assert not y[2048:].any()
    y.resize((16, 1024), refcheck=False)
    np.testing.assert_array_equal(y, EXPECTED[:16])


def test_threads_that_allocate_and_free_outputs_do_not_disturb_each_other() -> None:
    def work(seed: int) -> bool:
        x = np.random.default_rng(seed).standard_normal((1100, 1024), np.float32)
        expected = ours.layer_norm(x)
        return all((ours.layer_norm(x) == expected).all() for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


KEPT = """
import numpy as np, layernorm.numpy as ours
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
x = np.ones((8192, 1024), np.float32)
ours.layer_norm(x[:64])
before = resident()
two = ours.layer_norm(x), ours.layer_norm(x)  # 32 MiB each
del two
print(resident() - before)
"""


def kept_with(most: str | None) -> tuple[float, str]:
    """Return how much of two results of 32 MiB is kept, in results, and what is said on stderr."""
    environment = {k: v for k, v in os.environ.items() if k != "LAYERNORM_KEEP_BYTES"}
    if most is not None:
        environment["LAYERNORM_KEEP_BYTES"] = most
    done = subprocess.run(
        [sys.executable, "-c", KEPT], env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout) / 2**25, done.stderr


reads_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")


@reads_proc
@pytest.mark.starts_python
@pytest.mark.parametrize(
    ("most", "expected"),
    [
        *[("0", 0), ("1000000", 0), ("40000000", 1), (None, 2)],
        *[("40M", 1), ("40m", 1), (" 40 MiB ", 1), ("40MB", 1), ("40960K", 1), ("41943040B", 1)],
        *[("31M", 0), ("32M", 1), ("1G", 2), ("1T", 2), (str(2**64 - 1), 2)],
    ],
)
def test_the_environment_says_how_much_is_kept(most, expected) -> None:
    kept, said = kept_with(most)
    assert kept == pytest.approx(expected, abs=0.3)
    assert said == ""


@reads_proc
@pytest.mark.starts_python
@pytest.mark.parametrize(
    "most",
    [
        *["", " ", "-1", "-1M", "+1", "1.5", "0.1G", "1e3", "many", "M", "0x10", "1 000", "1Mi B"],
        *["1P", "1MM", "1,000", str(2**64), f"{2**34}G", "9" * 30],
    ],
)
def test_a_limit_that_is_no_number_of_bytes_is_told_and_the_default_taken(most) -> None:
    kept, said = kept_with(most)
    assert kept == pytest.approx(2, abs=0.3)
    (line,) = said.splitlines()
    assert f'LAYERNORM_KEEP_BYTES is "{most.strip()}", expected bytes, such as 0, ' in line
    assert line.endswith("the default, 128M, is used")
