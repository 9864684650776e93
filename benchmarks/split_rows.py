"""Rows that are split over up to 1,024 ranks: what merging moments costs, and its errors.

    python benchmarks/split_rows.py [--cols 8192] [--rows 64]

No rank is started. The first table is a model: bytes received and times of all-gathers of moments
and of x. The others are measured in NumPy. There the parts' moments are exact but for one rounding
to the type in which they travel, so the errors are those of the merge and of y. Each is the worst
of equal parts and of random ones, some of which are empty. A minute on one processor.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from layernorm import accuracy, reference

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
EPS = 1e-5
RANKS = (1, 2, 8, 64, 256, 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cols", type=int, default=8192, metavar="N")
    parser.add_argument("--rows", type=int, default=64, metavar="N")
    options = parser.parse_args()
    print_costs()
    print_forward_errors(options.rows, options.cols)
    print_backward_errors(options.rows, options.cols)


def print_table(title: str, header: list[str], lines: Iterator[list[str]]) -> None:
    print(f"### {title}\n")
    print("| " + " | ".join(header) + " |")
    print("|---" * len(header) + "|")
    for line in lines:
        print("| " + " | ".join(line) + " |", flush=True)
    print()


# The model. A start and a step take what NCCL assumes when it chooses an algorithm: those of a ring
# with protocol LL128, in src/graph/tuning.cc, commit b647562. Bandwidths are the hardware's.

NODE = 8  # ranks
START = 14e-6
NVLINK_STEP, NETWORK_STEP = 1.9e-6, 4.0e-6
NVLINK = 450e9  # bytes a second into a GPU: NVLink 4
NETWORK = 50e9  # into a GPU: InfiniBand NDR, 400 Gbit/s
MOMENTS = 16  # bytes for each row and rank
BFLOAT16 = 2


def ring(ranks: int, sent: float) -> float:
    """Return the seconds of an all-gather to which each rank contributes this many bytes."""
    nodes = nodes_of(ranks)
    steps = (ranks - nodes) * NVLINK_STEP + (nodes - 1) * NETWORK_STEP
    return START + steps + (ranks - 1) * sent / bandwidth(nodes)


def doubling(ranks: int, sent: float) -> float:
    """The same bytes in the fewest steps, by recursive doubling."""
    nodes = nodes_of(ranks)
    steps = math.log2(ranks / nodes) * NVLINK_STEP + math.log2(nodes) * NETWORK_STEP
    return START + steps + (ranks - 1) * sent / bandwidth(nodes)


def two_levels(ranks: int, sent: float) -> float:
    """A ring within each node, a merge, and a ring of the nodes for each of a node's ranks."""
    nodes = nodes_of(ranks)
    between = START + (nodes - 1) * (NETWORK_STEP + sent / NETWORK) if nodes > 1 else 0
    return ring(ranks // nodes, sent) + between


def nodes_of(ranks: int) -> int:
    return max(1, ranks // NODE)


def bandwidth(nodes: int) -> float:
    # each byte enters a node once, by one of its eight adapters
    return NVLINK if nodes == 1 else min(NVLINK, NODE * NETWORK)


def print_costs() -> None:
    def lines() -> Iterator[list[str]]:
        for ranks in (8, 16, 64, 256, 1024):
            for rows in (1, 512, 8192):
                x = [rows * cols * BFLOAT16 / ranks for cols in (8192, 16384)]
                messages = [rows * MOMENTS, *x]
                received = " / ".join(size((ranks - 1) * each) for each in messages)
                times = [
                    " / ".join(f"{1e6 * way(ranks, each):,.0f}" for each in messages)
                    for way in (ring, doubling)
                ]
                merged = f"{1e6 * two_levels(ranks, messages[0]):,.0f}"
                yield [f"{ranks:,}", f"{rows:,}", received, *times, merged]

    header = ["ranks", "rows", "received", "ring, µs", "doubling, µs", "two levels, µs"]
    print_table("Moments / x of 8,192 columns / x of 16,384, bfloat16, forward", header, lines())


def size(count: float) -> str:
    digits = max(0, math.floor(math.log10(count)) // 3)
    return f"{count / 1000**digits:.3g} {('B', 'kB', 'MB')[digits]}"


# The merge. Moments of parts are arrays (ranks, rows); sizes are (ranks,).

Sum: TypeAlias = Callable[[Array], Array]


def in_order(terms: Array) -> Array:
    """Add up over the ranks, one after the other."""
    total: Array = np.add.accumulate(terms)[-1]
    return total


def in_pairs(terms: Array) -> Array:
    """Add up over the ranks, the second half to the first, until one is left."""
    while len(terms) > 1:
        half = (len(terms) + 1) // 2
        terms = np.concatenate(
            (terms[: len(terms) - half] + terms[half:], terms[len(terms) - half : half])
        )
    total: Array = terms[0]
    return total


@dataclass(frozen=True)
class Moments:
    mean: Array
    residual: Array
    """The mean is mean + residual."""
    m2: Array
    """The sum of squared deviations from the mean."""


def exact_moments(x: Array, bounds: Array) -> tuple[Array, Moments]:
    """Return the sizes of the parts between these bounds, and their moments in np.longdouble."""
    mean, residual, m2 = np.zeros((3, len(bounds) - 1, len(x)), np.longdouble)
    for rank, (start, end) in enumerate(itertools.pairwise(bounds)):
        if end > start:
            part = x[:, start:end].astype(np.longdouble)
            mean[rank] = part.mean(-1).astype(np.float64)
            part -= mean[rank][:, None]
            residual[rank] = part.mean(-1)
            m2[rank] = np.square(part - residual[rank][:, None]).sum(-1)
    return np.diff(bounds), Moments(mean, residual, m2)


def merge(sizes: Array, parts: Moments, dtype: type, add: Sum = in_order) -> Moments:
    """Merge in this type: M2 = sum(M2_i + n_i (mean_i - mean)**2)."""
    sizes, m2 = sizes.astype(dtype)[:, None], parts.m2.astype(dtype)
    mean = (parts.mean + parts.residual).astype(dtype)
    merged = add(sizes * mean) / sizes.sum()
    return Moments(merged, np.zeros_like(merged), add(m2 + sizes * np.square(mean - merged)))


def merge_with_residuals(sizes: Array, parts: Moments, dtype: type, add: Sum = in_order) -> Moments:
    """Merge means, their residuals and standard deviations, of this type."""
    mean = (parts.mean + parts.residual).astype(dtype)
    residual = (parts.mean - mean + parts.residual).astype(dtype)
    std = np.sqrt(parts.m2 / np.maximum(sizes, 1)[:, None]).astype(dtype)
    sizes = sizes.astype(dtype)[:, None]
    merged = add(sizes * mean) / sizes.sum()
    # merged is rounded; the parts' distances from it are nearly exact, and so is their mean
    off = mean - merged + residual
    rest = add(sizes * off) / sizes.sum()
    return Moments(merged, rest, add(sizes * (np.square(std) + np.square(off - rest))))


def add_up(sizes: Array, parts: Moments, dtype: type) -> Moments:
    """Add up sum(x) and sum(x**2); the variance is E[x**2] - E[x]**2."""
    counts, means = sizes[:, None], parts.mean + parts.residual
    cols = dtype(sizes.sum())
    mean = in_order((counts * means).astype(dtype)) / cols
    squares = in_order((parts.m2 + counts * np.square(means)).astype(dtype))
    return Moments(mean, np.zeros_like(mean), squares - cols * np.square(mean))


Merge: TypeAlias = Callable[[Array, Moments], Moments]
MERGES: dict[str, dict[str, Merge]] = {
    "float32": {
        "float64, in order": partial(merge, dtype=np.float64),
        "float64, in pairs": partial(merge, dtype=np.float64, add=in_pairs),
        "float32, in order": partial(merge_with_residuals, dtype=np.float32),
        "float32, in pairs": partial(merge_with_residuals, dtype=np.float32, add=in_pairs),
        "float32, E[x²] - E[x]²": partial(add_up, dtype=np.float32),
    },
    "float64": {
        "in order": partial(merge_with_residuals, dtype=np.float64),
        "in pairs": partial(merge_with_residuals, dtype=np.float64, add=in_pairs),
        "in pairs, no residuals": partial(merge, dtype=np.float64, add=in_pairs),
    },
}


def normalize(x: Array, merged: Moments) -> tuple[Array, Array]:
    """Return xhat and rstd as the kernels compute them, in x's type."""
    wide = np.float64 if x.dtype == np.float32 else np.longdouble
    mean = merged.mean.astype(x.dtype)
    # exact: a float64 mean of float32 rows is split in two float32
    residual = (merged.mean - mean.astype(merged.mean.dtype)) + merged.residual
    with np.errstate(invalid="ignore"):
        rstd = (1 / np.sqrt(merged.m2.astype(wide) / x.shape[-1] + EPS)).astype(x.dtype)
    shift = (residual.astype(x.dtype) * rstd).astype(wide)[:, None]
    fused = (x - mean[:, None]).astype(wide) * rstd.astype(wide)[:, None] - shift
    return fused.astype(x.dtype), rstd


# Rows. Each returns float64 of one shape, rounded to the type under test.


def ordinary(random: np.random.Generator, shape: tuple[int, int]) -> Array:
    return random.standard_normal(shape)


def one_part_far(random: np.random.Generator, shape: tuple[int, int]) -> Array:
    x = random.standard_normal(shape)
    x[:, : shape[1] // 1024] += 1e4
    return x


def ramp(random: np.random.Generator, shape: tuple[int, int]) -> Array:
    return random.standard_normal(shape) + np.linspace(-1e3, 1e3, shape[1])


KINDS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Array]] = {
    "mean 0": ordinary,
    "mean 1e4": lambda random, shape: ordinary(random, shape) + 1e4,
    "mean 1e6": lambda random, shape: ordinary(random, shape) + 1e6,
    "first 1,024th at 1e4": one_part_far,
    "ramp, -1e3 to 1e3": ramp,
}


def splits(ranks: int, cols: int) -> tuple[Array, Array]:
    """Return the bounds of equal parts, and of random ones, some of which are empty."""
    cuts = np.sort(np.random.default_rng(ranks).integers(0, cols, ranks - 1))
    return np.arange(ranks + 1) * cols // ranks, np.array([0, *cuts, cols])


def print_forward_errors(rows: int, cols: int) -> None:
    for type_name, merges in MERGES.items():

        def lines(type_name: str, merges: dict[str, Merge]) -> Iterator[list[str]]:
            for kind, make in KINDS.items():
                x = make(np.random.default_rng(0), (rows, cols)).astype(type_name)
                var = reference.statistics(x, exact=True)[1][:, 0]
                for name, way in merges.items():
                    cells = [worst_forward(x, var, way, ranks) for ranks in RANKS]
                    yield [kind, name, *cells]

        title = f"{type_name}, {rows} rows of {cols:,}: relative error of the variance, ulp of y"
        header = ["rows", "moments", *(f"{ranks:,}" for ranks in RANKS)]
        print_table(title, header, lines(type_name, merges))


def worst_forward(x: Array, var: Array, way: Merge, ranks: int) -> str:
    of_var, of_y = 0.0, 0.0
    for bounds in splits(ranks, x.shape[-1]):
        merged = way(*exact_moments(x, bounds))
        found = merged.m2.astype(np.longdouble) / x.shape[-1]
        of_var = max(of_var, float(np.max(np.abs(found / var - 1))))
        of_y = max(of_y, accuracy.y_error(normalize(x, merged)[0], x, eps=EPS))
    return f"{of_var:.0e}, {ulps(of_y)}"


def ulps(error: float) -> str:
    return "NaN" if math.isinf(error) else f"{error:.2f}" if error < 100 else f"{error:.0e}"


def print_backward_errors(rows: int, cols: int) -> None:
    def lines() -> Iterator[list[str]]:
        for type_name, sums in (
            ("float32", np.float64),
            ("float32", np.float32),
            ("float64", np.float64),
        ):
            random = np.random.default_rng(1)
            x = random.standard_normal((rows, cols)).astype(type_name)
            dy = random.uniform(0.5, 1.5, x.shape).astype(type_name)  # of one sign: a growing sum
            for name, add in (("in order", in_order), ("in pairs", in_pairs)):
                cells = [f"{worst_backward(dy, x, sums, add, ranks):.2f}" for ranks in RANKS]
                yield [type_name, f"{sums.__name__}, {name}", *cells]

    header = ["rows", "sums", *(f"{ranks:,}" for ranks in RANKS)]
    print_table("Backward: ulp of dx", header, lines())


def worst_backward(dy: Array, x: Array, sums: type, add: Sum, ranks: int) -> float:
    """Return the worst error of dx, with the moments of the whole row."""
    wide = np.float64 if x.dtype == np.float32 else np.longdouble
    xhat, rstd = normalize(
        x, merge_with_residuals(*exact_moments(x, np.array([0, x.shape[-1]])), x.dtype.type)
    )
    g, exact_xhat = dy.astype(np.longdouble), xhat.astype(np.longdouble)
    worst = 0.0
    for bounds in splits(ranks, x.shape[-1]):
        mean_g, mean_gx = (
            add(sums_of_parts(each, bounds).astype(sums)) / sums(x.shape[-1])
            for each in (g, g * exact_xhat)
        )
        centered = (dy - mean_g.astype(x.dtype)[:, None]).astype(wide) * rstd.astype(wide)[:, None]
        slope = (rstd * mean_gx).astype(x.dtype).astype(wide)
        dx = (centered.astype(x.dtype) - xhat.astype(wide) * slope[:, None]).astype(x.dtype)
        worst = max(worst, accuracy.dx_error(dx, dy, x, eps=EPS))
    return worst


def sums_of_parts(terms: Array, bounds: Array) -> Array:
    return np.stack([terms[:, s:e].sum(-1) for s, e in itertools.pairwise(bounds)])


if __name__ == "__main__":
    main()
