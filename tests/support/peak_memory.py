"""Prints the peak memory of one call beyond its arrays, in units of x: python peak_memory.py CASE.

The peak is the operating system's, which counts every allocation of the process, NumPy's and C++'s
alike, and only ever grows: hence a process for each call. It counts the pages of code that the call
is the first to run too, 0.4 to 2 MiB for the same code, as the page cache has it: those are
subtracted.
"""

import ctypes
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import layernorm.numpy as ours
from layernorm.numpy.statistics import Gating

PR_SET_THP_DISABLE = 41


def count_in_small_pages() -> None:
    """Switch huge pages off: each may add up to 2 MiB that nobody asked for."""
    if ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0:
        raise OSError("huge pages cannot be switched off")


def resident(field: str) -> int:
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def peak_beyond(call: Callable[[], object], results: int) -> int:
    """Return by how much the peak exceeds the memory before the call and its results."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is in use
    before, files_before = resident("VmRSS"), resident("RssFile")
    kept = call()
    peak, files = resident("VmHWM"), resident("RssFile")
    del kept
    return peak - before - (files - files_before) - results


def measure(call: str, shape: list[int], axis: int, dtype: str) -> float:
    count_in_small_pages()
    few = np.random.default_rng(0).standard_normal(2**18 + 1, np.float32).astype(dtype)
    x = np.resize(few, shape)
    weight = np.ones(shape[axis], x.dtype)
    statistics = 3 * 4 * x.size // weight.size
    gradients = x.nbytes + 2 * weight.nbytes
    out = np.ones_like(x)
    # The first call starts the threads, which have memory of their own.
    _, stats = ours.layer_norm_forward(x, weight, weight, axis=axis, out=out)
    of_gate = dataclasses.replace(stats, gating=Gating("silu", axis == -1, weight))
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "forward": (lambda: ours.layer_norm(x, weight, weight, axis=axis, out=out), 0),
        "forward in place": (lambda: ours.layer_norm(x, weight, weight, axis=axis, out=x), 0),
        "forward with statistics": (
            lambda: ours.layer_norm_forward(x, weight, weight, axis=axis, out=out),
            statistics,
        ),
        "backward": (lambda: ours.layer_norm_backward(out, x, stats, weight), gradients),
        "forward with a residual": (
            lambda: ours.layer_norm(x, weight, residual=out, total=out, axis=axis, out=x),
            0,
        ),
        "backward with dtotal": (
            lambda: ours.layer_norm_backward(out, x, stats, weight, dtotal=x),
            gradients,
        ),
        "forward with a gate": (
            lambda: ours.layer_norm(x, weight, weight, gate=x, axis=axis, out=out),
            0,
        ),
        "backward with a gate": (
            lambda: ours.layer_norm_backward(out, x, of_gate, weight, gate=x),
            2 * x.nbytes + 2 * weight.nbytes,
        ),
        "quantized": (
            lambda: ours.quantized_layer_norm(x, weight, weight, axis=axis),
            x.size + statistics // 3,
        ),
        "copy": (lambda: x.copy(), 0),  # what a needless copy would look like
    }
    return peak_beyond(*calls[call]) / x.nbytes


if __name__ == "__main__":
    print(measure(**json.loads(sys.argv[1])))
