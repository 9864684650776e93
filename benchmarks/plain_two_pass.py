"""Time our kernels against a plain two-pass kernel (plain_two_pass.cc), in turns.

    python benchmarks/plain_two_pass.py [--threads 1,2] [--shapes 512x768,4096x768]

float32, layernorm.numpy; the forward makes a new y, or writes into `out=`; the plain kernel writes
where it wrote before. Medians in microseconds, of samples of about 4 ms. Needs g++ with OpenMP.
"""

import argparse
import ctypes
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import layernorm
from layernorm.numpy import layer_norm, layer_norm_backward, layer_norm_forward

SOURCE = Path(__file__).with_suffix(".cc")
FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-ffast-math", "-fopenmp")
ROUNDS = 15
SECONDS = 0.004
EPS = 1e-5

Call = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", default="1,2", metavar="N,...")
    parser.add_argument(
        "--shapes", default="512x768,4096x768,4097x769,8192x1024", metavar="ROWSxCOLS,..."
    )
    options = parser.parse_args()
    plain = compiled()
    print("| threads | shape | forward, plain | new y | `out=` | backward, plain | ours | copy |")
    print("|--:|---|--:|--:|--:|--:|--:|--:|")
    for threads in map(int, options.threads.split(",")):
        layernorm.set_num_threads(threads)
        for shape in options.shapes.split(","):
            rows, cols = map(int, shape.split("x"))
            times = medians(calls(plain, rows, cols, threads))
            print(f"| {threads} | {shape} | {' | '.join(f'{each:,.0f}' for each in times)} |")


def compiled() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "plain.so"
        subprocess.run(["g++", "-shared", "-fPIC", *FLAGS, SOURCE, "-o", library], check=True)
        return ctypes.CDLL(str(library))


def calls(plain: ctypes.CDLL, rows: int, cols: int, threads: int) -> list[Call]:
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((rows, cols), np.float32) for _ in range(2))
    weight, bias = np.full(cols, 1.5, np.float32), np.full(cols, 0.1, np.float32)
    y, out, dx, copy = (np.empty_like(x) for _ in range(4))
    dweight, dbias = np.empty_like(weight), np.empty_like(bias)
    mean, rstd = np.empty((2, rows), np.float32)
    _, stats = layer_norm_forward(x, weight, bias)
    sizes = (ctypes.c_int64(rows), ctypes.c_int64(cols))

    def forward() -> None:
        arrays = (x, weight, bias, y, mean, rstd)
        plain.forward(*map(address, arrays), *sizes, ctypes.c_float(EPS), threads)

    def backward() -> None:
        arrays = (dy, x, mean, rstd, weight, dx, dweight, dbias)
        plain.backward(*map(address, arrays), *sizes, threads)

    forward()
    backward()
    np.testing.assert_allclose(y, layer_norm(x, weight, bias), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        dx, layer_norm_backward(dy, x, stats, weight)[0], rtol=1e-3, atol=1e-4
    )
    return [
        forward,
        lambda: layer_norm(x, weight, bias),
        lambda: layer_norm(x, weight, bias, out=out),
        backward,
        lambda: layer_norm_backward(dy, x, stats, weight),
        lambda: np.copyto(copy, x),
    ]


def address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def medians(functions: list[Call]) -> list[float]:
    """Microseconds a call."""
    counts = [max(2, int(SECONDS / time_of(function, 3))) for function in functions]
    samples: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, count, times in zip(functions, counts, samples, strict=True):
            time.sleep(0.03)  # until the threads of the one before sleep
            time_of(function, max(3, count // 4))  # its own cache
            times.append(time_of(function, count))
    return [1e6 * statistics.median(times) for times in samples]


def time_of(function: Call, count: int) -> float:
    """Seconds a call, of so many; a result lives until the next, as in a loop of a user's."""
    result = function()
    start = time.perf_counter()
    for _ in range(count):
        result = function()
    seconds = (time.perf_counter() - start) / count
    del result
    return seconds


if __name__ == "__main__":
    main()
