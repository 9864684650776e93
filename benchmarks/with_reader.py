"""Time large forwards and backwards, each followed by a reader of what it wrote.

    python benchmarks/with_reader.py [--threads 1,2] [--mib 8,12,16,32,64] [--cols 1024,1023]

float32, layernorm.numpy; the reader adds up the rows of y or dx. Medians in milliseconds. An output
that is written past the cache is written faster and read slower: to see which is better for a size,
build a second package with other `kStreamBytes` in native/schedule.cc, and run this with the one
and the other, several times in turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

import layernorm
from layernorm.numpy import layer_norm, layer_norm_backward, layer_norm_forward

ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", default="1,2", metavar="N,...")
    parser.add_argument("--mib", default="8,12,16,32,64", metavar="N,...", help="of x")
    parser.add_argument("--cols", default="1024,1023", metavar="N,...")
    options = parser.parse_args()
    print("| threads | x | columns | forward | out= | backward |")
    print("|--:|--:|--:|--:|--:|--:|")
    for threads in map(int, options.threads.split(",")):
        layernorm.set_num_threads(threads)
        for mib in map(int, options.mib.split(",")):
            for cols in map(int, options.cols.split(",")):
                times = [f"{1e3 * each:.2f}" for each in medians((mib << 18) // cols, cols)]
                print(f"| {threads} | {mib} MiB | {cols} | {' | '.join(times)} |", flush=True)


def medians(rows: int, cols: int) -> list[float]:
    """Seconds of forward with a new y, forward into out=, backward; each with its reader."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, cols), np.float32)
    weight, bias = np.ones(cols, np.float32), np.zeros(cols, np.float32)
    dy, out = x[::-1].copy(), np.empty_like(x)
    _, stats = layer_norm_forward(x, weight, bias)
    writers: list[Callable[[], np.ndarray]] = [
        lambda: layer_norm(x, weight, bias),
        lambda: layer_norm(x, weight, bias, out=out),
        lambda: layer_norm_backward(dy, x, stats, weight)[0],
    ]
    samples: list[list[float]] = [[] for _ in writers]
    for _ in range(ROUNDS):
        for writer, times in zip(writers, samples, strict=True):
            times += [time_of(writer) for _ in range(7)][3:]  # the first ones fill the cache
    return [statistics.median(times) for times in samples]


def time_of(writer: Callable[[], np.ndarray]) -> float:
    start = time.perf_counter()
    np.add.reduce(writer(), axis=1)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
