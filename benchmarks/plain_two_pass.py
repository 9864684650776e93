"""Time our kernels against a plain two-pass kernel (plain_two_pass.cc), in turns.

    python benchmarks/plain_two_pass.py [--threads 1,2] [--shapes 512x768,4096x768]

float32, layernorm.numpy; the forward makes a new y, or writes into `out=`; the plain kernel always
writes into the same arrays. Medians in microseconds. Needs g++ with OpenMP.
"""

import argparse
import ctypes
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import layernorm
from layernorm.cli.bench.timing import Call, interleave
from layernorm.cli.problem import make_problem
from layernorm.numpy import layer_norm, layer_norm_backward, layer_norm_forward

SOURCE = Path(__file__).with_suffix(".cc")
FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-ffast-math", "-fopenmp")
EPS = 1e-5


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
            timings = interleave(calls(plain, rows, cols, threads)).values()
            times = [f"{1e6 * each.median:,.0f}" for each in timings]
            print(f"| {threads} | {shape} | {' | '.join(times)} |")


def compiled() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "plain.so"
        subprocess.run(["g++", "-shared", "-fPIC", *FLAGS, SOURCE, "-o", library], check=True)
        return ctypes.CDLL(str(library))


def calls(plain: ctypes.CDLL, rows: int, cols: int, threads: int) -> dict[str, Call]:
    problem = make_problem((rows, cols), "float32")
    x, weight, bias, dy = problem.x, problem.weight, problem.bias, problem.dy
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
    return {
        "forward, plain": forward,
        "new y": lambda: layer_norm(x, weight, bias),
        "out=": lambda: layer_norm(x, weight, bias, out=out),
        "backward, plain": backward,
        "ours": lambda: layer_norm_backward(dy, x, stats, weight),
        "copy": lambda: np.copyto(copy, x),
    }


def address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


if __name__ == "__main__":
    main()
