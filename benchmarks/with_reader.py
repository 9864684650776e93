"""Time large forwards and backwards, each followed by a reader of what it wrote.

    python benchmarks/with_reader.py [--threads 1,2] [--mib 8,12,16,32,64] [--cols 1024,1023]

float32, layernorm.numpy; the reader sums the rows of y or dx. Medians in milliseconds. An output
written past the cache is written faster and read slower. To see which is better for a size, build a
second package with another `kStreamBytes` (native/schedule.cc), and run this with each of the two,
several times in turns.
"""

import argparse

import numpy as np

import layernorm
from layernorm.cli.bench.timing import Call, interleave
from layernorm.cli.problem import make_problem
from layernorm.numpy import layer_norm, layer_norm_backward, layer_norm_forward


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
                timings = interleave(calls((mib << 18) // cols, cols)).values()
                times = [f"{1e3 * each.median:.2f}" for each in timings]
                print(f"| {threads} | {mib} MiB | {cols} | {' | '.join(times)} |", flush=True)


def calls(rows: int, cols: int) -> dict[str, Call]:
    """Forward with a new y, forward into out=, backward; each with its reader."""
    problem = make_problem((rows, cols), "float32")
    x, weight, bias, dy = problem.x, problem.weight, problem.bias, problem.dy
    out = np.empty_like(x)
    _, stats = layer_norm_forward(x, weight, bias)
    return {
        "forward": lambda: read(layer_norm(x, weight, bias)),
        "out=": lambda: read(layer_norm(x, weight, bias, out=out)),
        "backward": lambda: read(layer_norm_backward(dy, x, stats, weight)[0]),
    }


def read(written: np.ndarray) -> None:
    np.add.reduce(written, axis=1)


if __name__ == "__main__":
    main()
