"""Time data outside the ordinary range beside ordinary data, in turns.

    python benchmarks/scaled_rows.py [--shape 4096x768] [--axis -1] [--types float32,bfloat16]

Ratios of medians, forward (`out=`) and backward of layernorm.numpy on one thread: how many times as
long a call takes as with ordinary data. A few minutes. `--shape 64x64x32x32 --axis 1` times strided
rows.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import layernorm
from layernorm.cli.bench.timing import Call, interleave
from layernorm.cli.problem import Problem, make_problem
from layernorm.numpy import layer_norm, layer_norm_backward, layer_norm_forward

REPEATS = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="4096x768", metavar="NxN")
    parser.add_argument("--axis", type=int, default=-1)
    parser.add_argument("--types", default="float32,bfloat16", metavar="TYPE,...")
    options = parser.parse_args()
    shape = tuple(map(int, options.shape.split("x")))
    types = options.types.split(",")
    layernorm.set_num_threads(1)
    print("| data | " + " | ".join(f"{each}, forward | backward" for each in types) + " |")
    print("|---|" + "--:|--:|" * len(types))
    for name, change in CHANGES.items():
        cells = []
        for type_name in types:
            ordinary = make_problem(shape, type_name, axis=options.axis)
            cells += [f"{ratio:.1f}" for ratio in ratios(ordinary, change)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def ratios(ordinary: Problem, change: Callable[..., float | None]) -> tuple[float, float]:
    """Forward's and backward's."""
    x, dy = ordinary.x.copy(), ordinary.dy.copy()
    with np.errstate(all="ignore"):
        eps = change(x, dy)
        pairs = [
            (calls(ordinary, ordinary.x, ordinary.dy, ordinary.eps)[way],
             calls(ordinary, x, dy, ordinary.eps if eps is None else eps)[way])
            for way in range(2)
        ]  # fmt: skip
        return tuple(ratio(*pair) for pair in pairs)  # type: ignore[return-value]


def calls(problem: Problem, x: Any, dy: Any, eps: float) -> tuple[Call, Call]:
    _, stats = layer_norm_forward(x, problem.weight, problem.bias, axis=problem.axis, eps=eps)
    return (
        partial(layer_norm, x, problem.weight, problem.bias, axis=problem.axis, eps=eps,
                out=np.empty_like(x)),
        partial(layer_norm_backward, dy, x, stats, problem.weight),
    )  # fmt: skip


def ratio(ordinary: Call, changed: Call) -> float:
    timings = interleave({"ordinary": ordinary, "changed": changed}, repeats=REPEATS)
    return timings["changed"].median / timings["ordinary"].median


# Each changes x and dy in place, and returns another eps or None.


def all_nan(x: Any, dy: Any) -> None:
    x[...] = np.nan


def an_infinity(x: Any, dy: Any) -> None:
    x[:, 3] = np.inf


def last_nan(x: Any, dy: Any) -> None:
    x[-1] = np.nan


def huge(x: Any, dy: Any) -> None:
    x *= x.dtype.type(1e30)


def tiny(x: Any, dy: Any) -> float:
    x *= x.dtype.type(1e-30)
    return 0.0


def zeros(x: Any, dy: Any) -> float:
    x[...] = 0
    return 0.0


def dy_zero(x: Any, dy: Any) -> None:
    dy[...] = 0


def dy_nan(x: Any, dy: Any) -> None:
    dy[...] = np.nan


def dy_infinity(x: Any, dy: Any) -> None:
    dy[-1] = np.inf


def dy_one_infinity(x: Any, dy: Any) -> None:
    dy[-1, 3] = np.inf


def dy_huge(x: Any, dy: Any) -> None:
    dy *= dy.dtype.type(1e30)


def dy_tiny(x: Any, dy: Any) -> None:
    dy *= dy.dtype.type(1e-35)


CHANGES: dict[str, Callable[..., float | None]] = {
    "all NaN": all_nan,
    "an infinity in each row": an_infinity,
    "NaN in the last row alone": last_nan,
    "x times 1e30": huge,
    "x times 1e-30, eps = 0": tiny,
    "zeros, eps = 0": zeros,
    "dy all zero": dy_zero,
    "dy all NaN": dy_nan,
    "dy with an infinite last row": dy_infinity,
    "dy with one infinity": dy_one_infinity,
    "dy times 1e30": dy_huge,
    "dy times 1e-35": dy_tiny,
}


if __name__ == "__main__":
    main()
